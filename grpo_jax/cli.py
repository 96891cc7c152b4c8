"""The command `grpo-jax`. Nothing heavy is imported before it is known what is asked.

grpo-jax run EXPERIMENT [--field value ...]
grpo-jax eval RUN_OR_MODEL    grpo-jax sample RUN_OR_MODEL    grpo-jax export RUN DIRECTORY
grpo-jax report RUN           grpo-jax score EXPERIMENT FILE
"""

import difflib
import importlib
import importlib.util
import json
import math
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from grpo_jax.launch import launch, plain_errors
from grpo_jax.rewards.base import Completion, Question
from grpo_jax.run_directory import read_config


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
    max_new_tokens: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Asks held-out questions, greedily and by sampling; prints one JSON object.

    Args:
        source: a run directory (its newest checkpoint), a model directory, or the default's name.
        experiment: whose questions; by default those that the run was trained for.
        questions: how many, at most.
        samples: of each, besides one greedy answer.
        max_new_tokens: longest answer; by default the experiment's.
        temperature: of the samples.
        seed: of the draws.
    """
    from grpo_jax.evaluate import ask_held_out
    from grpo_jax.rewards.combine import score_groups, weighted_sum
    from grpo_jax.sampling import Sampling

    loaded = _load(source, experiment)
    if loaded.module is None:
        raise ValueError(
            f"{source} is a model and has no questions; name them: --experiment quickstart"
        )
    config, task = loaded.config, loaded.module.task(loaded.config)

    def rewards(asked: Any, completions: Any) -> Any:
        functions = {task.name: task.reward}
        timeout = config.reward_timeout_seconds
        scored = score_groups(functions, asked, completions, step=0, timeout_seconds=timeout)
        return weighted_sum(scored, [1.0])

    result: dict[str, Any] = {"source": source, "step": loaded.step, "task": task.name}
    tokenizer = loaded.network.tokenizer
    for name, heat, count in (("sampled", temperature, samples), ("greedy", 0.0, 1)):
        sampling = Sampling(
            max_new_tokens=max_new_tokens or config.max_new_tokens,
            temperature=heat,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        )
        found = ask_held_out(
            loaded.network.policy,
            loaded.params,
            tokenizer,
            task,
            rewards,
            sampling=sampling,
            num_questions=questions,
            num_samples=count,
            max_prompt_tokens=config.max_prompt_tokens,
            seed=seed,
        )
        result |= {f"{name}/reward": found.reward, f"{name}/reward_stderr": found.stderr}
        result["num_questions"] = len(found.questions)
    print(json.dumps(result))


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

    from grpo_jax.data import decode_completions, pad_prompts
    from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
    loaded = _load(source)
    tokenizer = loaded.network.tokenizer
    question = Question(0, ({"role": "user", "content": prompt},) if chat else prompt)
    ids = tokenizer.encode(question.prompt)
    rollout = sample_groups(
        loaded.network.policy,
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
    log_probs = rollout.sampler_log_probs[0].sum(axis=-1)
    for row, log_prob in zip(decode_completions(rollout, tokenizer)[0], log_probs, strict=True):
        line = {"text": row.text, "num_tokens": row.num_tokens, "truncated": row.truncated}
        print(json.dumps(line | {"log_prob": float(log_prob)}))


def export(source: tyro.conf.Positional[str], target: tyro.conf.Positional[Path]) -> None:
    """Writes the newest checkpoint as a Hugging Face model directory.

    Args:
        source: a run directory.
        target: the directory to make.
    """
    from grpo_jax.run_directory import check_unused

    check_unused(target)
    loaded = _load(source)
    if loaded.network.export is None:
        raise ValueError(f"{source} trained a toy; there is no checkpoint format to write it in")
    loaded.network.export(loaded.params, target)
    print(json.dumps({"directory": str(target), "step": loaded.step}))


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
    """Runs an experiment's reward function over a file; no model is loaded.

    Each line is a JSON object with `completion` (text) or `completions` (texts, or objects with
    `text`) and what the reward needs: `answer`, `prompt`; a run's completions.jsonl will do. Any
    other line is a completion by itself, scored against --answer.

    Args:
        experiment: a name in experiments/, or the path of a file like those.
        file: the text, or - for standard input.
        answer: of lines that name none, as JSON (a bare word is text).
    """
    from grpo_jax.rewards.combine import score_groups

    module = experiment_module(experiment)
    task = module.task(module.Config())
    text = sys.stdin.read() if str(file) == "-" else _read(file)
    rewards: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        question, completions = _scored_line(line, number, answer)
        scored = score_groups(
            {task.name: task.reward}, [question], [completions], step=0, timeout_seconds=60.0
        )
        values = [float(value) for value in scored[0, :, 0]]
        rewards += values
        for completion, value in zip(completions, values, strict=True):
            print(json.dumps({"line": number, "reward": value, "completion": completion.text}))
    applies = [value for value in rewards if not math.isnan(value)]
    mean = sum(applies) / len(applies) if applies else None
    print(json.dumps({"task": task.name, "completions": len(rewards), "mean_reward": mean}))


def experiment_module(name: str) -> ModuleType:
    """The module of an experiment: a name in experiments/, or the path of a file.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name.endswith(".py"):
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"there is no experiment file {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    import experiments

    names = sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))
    short = name.removeprefix("experiments.")
    if short not in names:
        near = difflib.get_close_matches(short, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no experiment {name!r}; {hint}There are: {', '.join(names)}")
    return importlib.import_module(f"experiments.{short}")


class _Loaded:
    """A network with the parameters of a run's newest checkpoint, or of a model."""

    def __init__(self, network: Any, params: Any, step: int, module: Any, config: Any):
        self.network, self.params, self.step = network, params, step
        self.module, self.config = module, config


def _load(source: str, experiment: str = "") -> _Loaded:
    from grpo_jax.checkpoints import Checkpoints
    from grpo_jax.models.network import pretrained

    path = Path(source)
    is_run = (path / "checkpoints").is_dir() and (path / "config.json").is_file()
    saved = read_config(path) if is_run else None
    name = experiment or (saved["experiment"] if saved else "")
    module = experiment_module(name) if name else None
    config = module.Config() if module else None
    if saved is None:
        network = pretrained(source)
        return _Loaded(network, network.load(), 0, module, config)
    trained = experiment_module(saved["experiment"])
    saved_config = trained.Config(**_tuples(saved["config"]) | {"resume": False})
    if hasattr(trained, "network"):
        network = trained.network(saved_config)
    else:
        network = pretrained(saved_config.model)
    checkpoints = Checkpoints(path / "checkpoints")
    step, params = checkpoints.restore_params(network.shapes)
    checkpoints.close()
    return _Loaded(network, params, step, module, config if experiment else saved_config)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None


def _scored_line(line: str, number: int, answer: str | None) -> tuple[Question, list[Completion]]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {"completion": line}
    texts = fields.get("completions", [fields.get("completion")])
    rows: list[dict[str, Any]] = [t if isinstance(t, dict) else {"text": t} for t in texts]
    if not all(isinstance(row.get("text"), str) for row in rows):
        raise ValueError(
            f'line {number} has no completion: give {{"completion": text}} or '
            f'{{"completions": [...]}}, not {line[:80]!r}'
        )
    given = fields.get("answer", _json_or_text(answer))
    if given is None:
        raise ValueError(f"line {number} names no answer to compare with; give it, or --answer")
    completions = [
        # Where the file does not say how long a completion was, characters stand in.
        Completion(
            row["text"], row.get("num_tokens", len(row["text"])), row.get("truncated", False)
        )
        for row in rows
    ]
    return Question(number, fields.get("prompt", ""), given), completions


def _json_or_text(answer: str | None) -> Any:
    try:
        return None if answer is None else json.loads(answer)
    except ValueError:
        return answer
