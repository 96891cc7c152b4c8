"""The command `grpo-jax`. Nothing heavy is imported before it is known what is asked.

grpo-jax run EXPERIMENT [--field value ...]
grpo-jax eval RUN_OR_MODEL    grpo-jax sample RUN_OR_MODEL    grpo-jax export RUN DIRECTORY
grpo-jax report RUN           grpo-jax score EXPERIMENT FILE
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from grpo_jax.launch import launch, plain_errors
from grpo_jax.rewards.base import Completion, Question, RewardFn
from grpo_jax.run_directory import read_config, to_json
from grpo_jax.source import experiment_module, load_source
from grpo_jax.tasks.base import Task


def main() -> None:
    """Entry point."""
    args = sys.argv[1:]
    with plain_errors():
        if len(args) > 1 and args[0] == "run" and not args[1].startswith("-"):
            module = experiment_module(args[1])
            launch(module.main, module.Config, args=args[2:], prog=f"grpo-jax run {args[1]}")
            return
        tyro.extras.subcommand_cli_from_dict(
            {
                "run": run,
                "eval": evaluate,
                "sample": sample,
                "export": export,
                "report": report,
                "score": score,
            },
            prog="grpo-jax",
            description="GRPO in JAX: train, look, evaluate, export.",
        )


def run(experiment: tyro.conf.Positional[str]) -> None:
    """Trains: `grpo-jax run EXPERIMENT [--field value ...]`; `run EXPERIMENT --help` lists fields.

    Args:
        experiment: a name in experiments/, or the path of a file like those.
    """
    experiment_module(experiment)


def evaluate(
    source: tyro.conf.Positional[str],
    experiment: str = "",
    questions: int = 100,
    samples: int = 4,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> None:
    """Asks held-out questions, greedily and by sampling; prints one JSON object.

    Args:
        source: a run directory (its newest checkpoint), a model directory, or the default's name.
        experiment: whose questions; by default those that the run was trained for.
        questions: how many, at most.
        samples: of each, besides one greedy answer.
        max_new_tokens: longest answer; by default the run's.
        temperature: of the samples; by default the run's.
        seed: of the draws; by default the run's.
    """
    from grpo_jax.data import held_out_questions
    from grpo_jax.evaluate import evaluate as evaluate_held_out
    from grpo_jax.rewards.combine import score_groups, weighted_sum
    from grpo_jax.sampling import Sampling

    _at_least_one(questions=questions, samples=samples)
    loaded = load_source(source, experiment)
    if loaded.module is None:
        raise ValueError(
            f"{source} is a model and has no questions; name them: --experiment quickstart"
        )
    config, task = loaded.config, loaded.module.task(loaded.config)
    functions = _reward_functions(loaded.module, config, task)
    weights = loaded.rewards or dict.fromkeys(functions, 1.0)
    if weights.keys() != functions.keys():
        raise ValueError(
            f"{source} was scored by {sorted(weights)}, but its experiment now gives "
            f"{sorted(functions)}; it needs a function rewards(config) that gives the same"
        )
    tokenizer = loaded.network.tokenizer
    asked, prompts = held_out_questions(
        task,
        tokenizer,
        num_questions=questions,
        max_prompt_tokens=config.max_prompt_tokens,
        drop_long_prompts=config.drop_long_prompts,
    )

    def score(completions: Any) -> Any:
        timeout = config.reward_timeout_seconds
        scored = score_groups(functions, asked, completions, step=0, timeout_seconds=timeout)
        return weighted_sum(scored, [weights[name] for name in functions])

    longest_answer = config.max_new_tokens if max_new_tokens is None else max_new_tokens
    found, _ = evaluate_held_out(
        loaded.network.policy_up_to(config.max_prompt_tokens + longest_answer),
        loaded.params,
        tokenizer,
        prompts,
        score,
        sampling=Sampling(
            max_new_tokens=longest_answer,
            temperature=config.temperature if temperature is None else temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        ),
        num_samples=samples,
        seed=config.seed if seed is None else seed,
    )
    print(to_json({"source": source, "step": loaded.step, "task": task.name, **found}))


def sample(
    source: tyro.conf.Positional[str],
    prompt: str,
    chat: bool = False,
    samples: int = 4,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> None:
    """Prints completions of a prompt, a JSON line each: text, tokens, log-probability.

    Args:
        source: a run directory (its newest checkpoint), a model directory, or the default's name.
        prompt: the text.
        chat: the prompt is a user's turn, rendered by the model's chat template.
        samples: how many completions.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        top_k: sample from the k likeliest tokens; 0 from all.
        top_p: sample from the likeliest tokens with this share of the probability.
        min_p: sample from tokens at least this many times as likely as the likeliest.
        seed: of the draws.
    """
    import jax

    from grpo_jax.continuous_batching import sample_continuously
    from grpo_jax.data import decode_completions, pad_prompts
    from grpo_jax.sampling import Sampling, prompt_keys

    _at_least_one(samples=samples)
    loaded = load_source(source)
    tokenizer = loaded.network.tokenizer
    question = Question(0, ({"role": "user", "content": prompt},) if chat else prompt)
    ids = tokenizer.encode(question.prompt)
    rollout = sample_continuously(
        loaded.network.policy_up_to(len(ids) + max_new_tokens),
        loaded.params,
        pad_prompts([question], [ids], max_prompt_tokens=max(len(ids), 1)),
        prompt_keys(jax.random.key(seed), 0, 1),
        group_size=samples,
        sampling=Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        ),
    )
    assert rollout.sampler_log_probs is not None
    log_probs = rollout.sampler_log_probs[0].sum(axis=-1)
    for row, log_prob in zip(decode_completions(rollout, tokenizer)[0], log_probs, strict=True):
        line = {"text": row.text, "num_tokens": row.num_tokens, "truncated": row.truncated}
        print(to_json(line | {"log_prob": float(log_prob)}))


def export(
    source: tyro.conf.Positional[str],
    target: tyro.conf.Positional[Path],
    *,
    adapters: bool = False,
) -> None:
    """Writes the newest checkpoint as a Hugging Face model directory.

    Args:
        source: a run directory.
        target: the directory to make.
        adapters: of a run with --lora-rank, the adapters alone, as the PEFT library has them; else
            they are merged into the weights.
    """
    from grpo_jax.models.saving import Provenance

    if target.exists():
        raise ValueError(f"{target} exists already; nothing was written, choose another name")
    loaded = load_source(source)
    if loaded.network.export is None:
        raise ValueError(f"{source} trained a toy; there is no checkpoint format to write it in")
    experiment = loaded.module.__name__.rpartition(".")[2] if loaded.module else "none"
    model = getattr(loaded.config, "model", source)
    provenance = Provenance(model, experiment, loaded.step, loaded.objective)
    if not adapters:
        loaded.network.export(loaded.params, target, provenance)
    elif loaded.network.export_adapters is None:
        raise ValueError(f"{source} has no adapters (--lora-rank was 0); leave out --adapters")
    else:
        loaded.network.export_adapters(loaded.trained, target, provenance)
    print(to_json({"directory": str(target), "step": loaded.step}))


def report(run_dir: tyro.conf.Positional[Path]) -> None:
    """Writes report.html anew from a run's logs.

    Args:
        run_dir: a run directory.
    """
    from grpo_jax.report import write_report

    read_config(run_dir)  # refuses what is no run
    print(write_report(run_dir))


def score(
    experiment: tyro.conf.Positional[str],
    file: tyro.conf.Positional[Path],
    answer: Annotated[str | None, tyro.conf.arg(metavar="JSON")] = None,
) -> None:
    """Runs an experiment's reward functions over a file; no model is loaded.

    Each line is a JSON object with `completion` (text) or `completions` (texts, or objects with
    `text`) and what the reward needs: `answer`, `prompt`; a run's completions.jsonl will do. Any
    other line is a completion by itself, scored against --answer.

    Args:
        experiment: a name in experiments/, or the path of a file like those.
        file: the text, or - for standard input.
        answer: of lines that name none, as the task writes its answers.
    """
    from grpo_jax.rewards.combine import score_groups, weighted_sum

    module = experiment_module(experiment)
    config = module.Config()
    if hasattr(module, "rewards"):
        functions, answer_is_text = module.rewards(config), False
    else:
        task = module.task(config)
        functions = _reward_functions(module, config, task)
        answer_is_text = isinstance(task.held_out(0).answer, str)
    given = None if answer is None else _json_or_text(answer)
    if answer_is_text and not isinstance(given, str):
        given = answer
    text = sys.stdin.read() if str(file) == "-" else _read(file)
    rewards: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        question, completions = _scored_line(line, number, given)
        scored = score_groups(functions, [question], [completions], step=0, timeout_seconds=60.0)
        values = weighted_sum(scored, [1.0] * len(functions))[0].tolist()
        rewards += values
        for completion, value in zip(completions, values, strict=True):
            print(to_json({"line": number, "reward": value, "completion": completion.text}))
    applies = [value for value in rewards if not math.isnan(value)]
    mean = sum(applies) / len(applies) if applies else None
    names = sorted(functions)
    print(to_json({"rewards": names, "completions": len(rewards), "mean_reward": mean}))


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _reward_functions(module: ModuleType, config: Any, task: Task) -> Mapping[str, RewardFn]:
    """An experiment's own (`rewards(config)` in its file), or its task's."""
    if hasattr(module, "rewards"):
        return module.rewards(config)
    return {task.name: task.reward}


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None


def _scored_line(line: str, number: int, answer: Any) -> tuple[Question, list[Completion]]:
    fields: Any = {"completion": line}
    if line.lstrip().startswith("{"):
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} begins like JSON but is none: {error}") from None
    texts = fields.get("completions", [fields.get("completion")])
    rows: list[Any] = list(texts) if isinstance(texts, list) else [None]
    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    if not rows or not all(isinstance(row.get("text"), str) for row in rows):
        raise ValueError(
            f'line {number} has no completion: give {{"completion": text}} or '
            f'{{"completions": [...]}}, not {line[:80]!r}'
        )
    answer = fields.get("answer", answer)
    if answer is None:
        raise ValueError(f"line {number} names no answer to compare with; give it, or --answer")
    completions = [
        # Where the file does not say how long a completion was, characters stand in.
        Completion(
            row["text"], row.get("num_tokens", len(row["text"])), row.get("truncated", False)
        )
        for row in rows
    ]
    return Question(number, fields.get("prompt", ""), answer), completions


def _json_or_text(answer: str) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return answer
