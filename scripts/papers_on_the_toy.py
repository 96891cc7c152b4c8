"""Trains the toy by every paper in turn and prints a table: a check that each can learn at all.

    python -m scripts.papers_on_the_toy [--seeds 2] [--only grpo dapo]

The same model, questions, keys and learning rate for all, two updates a step, none tuned: it says
that no sign is wrong, and nothing of which paper is better. Most of the time is compilation. The
printed table stands in docs/papers_on_the_toy.md.
"""

import argparse
import inspect
import pathlib
import tempfile

import numpy as np

from experiments import toy
from grpo_jax import objectives, run, tasks
from grpo_jax.run_directory import RunDirectory

# A run has rewards of whole completions and no critic.
LEFT_OUT = {"grpo_process": "step rewards", "ppo": "a critic's values"}
SETTINGS = {"dr_grpo": {"max_new_tokens": 3}, "pkpo": {"k": 2}}
STEPS, LAST = 100, 10


def digit(question, completions):
    """Half of the task's reward: the digit."""
    return [float(c.text[:1] == question.answer) for c in completions]


def ending(question, completions):
    """The other half: an end after one character."""
    return [float(len(c.text) == 1 and not c.truncated) for c in completions]


def train(name: str, seed: int, run_dir: str) -> list[dict]:
    """The metrics of each step."""
    paper = getattr(objectives, name)(**SETTINGS.get(name, {}))
    config = toy.Config(
        run_dir=run_dir,
        seed=seed,
        steps=STEPS,
        num_minibatches=2,
        eval_questions=0,
        show_every=0,
    )
    run(
        config,
        task=tasks.MaxOfThree(),
        network=toy.network(config),
        objective=paper,
        rewards={"digit": digit, "ending": ending},
        reward_weights={"digit": 0.5, "ending": 0.5},
    )
    return list(RunDirectory(pathlib.Path(run_dir)).read("metrics.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=objectives.__all__)
    args = parser.parse_args()
    seeds, rows = range(args.seeds), []
    for name in args.only:
        if not inspect.isfunction(getattr(objectives, name)) or name in LEFT_OUT | {"prepare": ""}:
            continue
        ends, acts = [], []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                steps = train(name, seed, str(pathlib.Path(folder) / "run"))
            rewards = np.array([step["reward"] for step in steps])
            ends.append((rewards[:LAST].mean(), rewards[-LAST:].mean()))
            acts.append(np.mean([step.get("clip_ratio/region_mean", np.nan) for step in steps]))
        cells = [f"{first:.2f} -> {last:.2f}" for first, last in ends]
        share = np.mean(acts)
        rows.append([name, *cells, "none" if np.isnan(share) else f"{share:.2%}"])
    heads = ["paper", *(f"seed {seed}" for seed in seeds), "trust region acts"]
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
