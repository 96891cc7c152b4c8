"""`grpo-jax`, command by command, on a small toy and on a tiny random Llama."""

import importlib.util
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import toys
from safetensors import safe_open
from safetensors.numpy import load_file

from experiments import toy
from grpo_jax import cli, evaluate, source, training_loop
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.models.loading import WEIGHTS
from grpo_jax.models.network import pretrained

SMALL = ("--num-prompts", "4", "--group-size", "4", "--learning-rate", "0.01")
SMALL += ("--eval-questions", "4", "--eval-samples", "4", "--show-every", "0")

# An experiment as a user would write one: a file somewhere.
LETTERS = '''
import dataclasses, json
import grpo_jax
from grpo_jax import tasks

@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """The largest of three digits, by a pretrained model."""
    max_prompt_tokens: int = 4
    max_new_tokens: int = 3

class Letters(tasks.MaxOfThree):
    def reward(self, question, completions):
        # Anything that differs within a group of random texts.
        return [float(sum(map(ord, row.text)) % 7) for row in completions]

def task(config):
    return Letters()

def main(config):
    print(json.dumps(grpo_jax.run(
        config, task=task(config), objective=grpo_jax.grpo(kl_coef=0.0)
    )))

if __name__ == "__main__":
    grpo_jax.launch(main, Config)
'''


def call(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo-jax", *map(str, args)])
        cli.main()


@pytest.fixture(scope="module", autouse=True)
def small_toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "network", lambda config: toys.network())
        patch.setattr(training_loop, "make_optimizer", toys.make_optimizer)
        yield


@pytest.fixture
def grpo(capsys):
    """Calls the command; its lines on standard output, those of JSON objects decoded."""

    def run(*args):
        capsys.readouterr()
        call(*args)
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) if line.startswith("{") else line for line in lines]

    return run


@pytest.fixture
def refusal(capsys):
    """Calls the command, which must refuse; its words in one line."""

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            call(*args)
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == "", "something was printed as a result"
        return " ".join(err.split())

    return run


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("cli") / "toy"
    call("run", "toy", "--run-dir", run_dir, "--steps", "3", *SMALL)
    return run_dir


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """An experiment file and a model directory."""
    place = tmp_path_factory.mktemp("letters")
    (place / "letters.py").write_text(LETTERS)
    toys.llama_directory(place / "model")
    return place


# -- run -----------------------------------------------------------------------------------------


def test_run_trains_and_prints_one_object_last(grpo, toy_run):
    *table, last = grpo("run", "toy", "--run-dir", toy_run, "--steps", "4", "--resume", *SMALL)
    assert any("resumed after step 3" in line for line in table)
    assert last == json.loads((toy_run / "summary.json").read_text())
    assert last["steps"] == 4
    assert last["run_dir"] == str(toy_run)
    assert last.keys() >= {"held_out_before", "held_out_after", "seconds", "peak_rss_bytes"}
    assert [line["step"] for line in toys.lines(toy_run, "metrics.jsonl")] == [1, 2, 3, 4]


def test_run_makes_a_directory_of_its_own_below_runs(grpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [
        grpo("run", "toy", "--steps", "1", *SMALL, "--eval-questions", "0")[-1]["run_dir"]
        for _ in range(2)
    ]
    assert found[0] != found[1]
    for name in found:
        assert re.fullmatch(r"runs/toy-\d{8}-\d{6}(-\d+)?", name)
        assert (tmp_path / name / "report.html").is_file()


def test_an_experiment_file_does_not_hide_a_module_of_its_name(tmp_path):
    import colorsys

    path = tmp_path / "colorsys.py"
    path.write_text(LETTERS)
    module = source.experiment_module(str(path))
    assert module.Config().max_prompt_tokens == 4
    assert sys.modules["colorsys"] is colorsys


def test_every_experiment_is_found_by_its_name():
    here = pathlib.Path(__file__).resolve().parent.parent / "experiments"
    names = [path.stem for path in here.glob("*.py") if path.stem != "__init__"]
    assert {"quickstart", "toy"} <= set(names)
    for name in names:
        module = source.experiment_module(name)
        assert module is source.experiment_module(f"experiments.{name}")
        assert module.Config()
        assert callable(module.main)
        assert callable(module.task)


# -- eval ----------------------------------------------------------------------------------------


def test_eval_says_what_the_run_said_at_its_end(grpo, toy_run):
    (found,) = grpo("eval", toy_run, "--questions", "4", "--samples", "4")
    last = toys.lines(toy_run, "evaluations.jsonl")[-1]
    assert found["step"] == last["step"]
    assert found["task"] == "max_of_three"
    assert found["eval/num_questions"] == 4
    for name in ("sampled", "greedy"):
        assert found[f"eval/{name}/reward"] == last[f"eval/{name}/reward"]
        assert found[f"eval/{name}/reward_stderr"] == last[f"eval/{name}/reward_stderr"]


def test_eval_of_a_run_uses_the_seed_and_sampling_that_it_was_trained_with(
    grpo, toy_run, tmp_path, monkeypatch
):
    run_dir = tmp_path / "run"
    shutil.copytree(toy_run, run_dir)
    saved = json.loads((run_dir / "config.json").read_text())
    changed = {"seed": 5, "temperature": 3.0, "top_k": 2, "top_p": 0.9, "min_p": 0.1}
    toys.edit_json(run_dir / "config.json", config=saved["config"] | changed)
    asked = []

    def ask(*args, sampling, num_samples, seed, **_):
        asked.append((sampling, num_samples, seed))
        return evaluate.HeldOut(0.0, 0.0, [], np.zeros([0, 0]))

    monkeypatch.setattr(evaluate, "ask_held_out", ask)
    grpo("eval", run_dir)
    (sampled, _, seed), (greedy, one, _) = asked
    assert (greedy.temperature, one) == (0.0, 1)
    assert seed == 5
    for name in ("temperature", "top_k", "top_p", "min_p"):
        assert getattr(sampled, name) == changed[name]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--questions", "0"], ["questions is 0"]),
        (["--samples", "0"], ["samples is 0"]),
        (["--max-new-tokens", "-1"], ["max_new_tokens is -1", "at least 1"]),
        (["--temperature", "-1"], ["temperature is -1", "0 (greedy) or more"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_eval_refuses_what_it_cannot_ask(args, parts, refusal, toy_run):
    message = refusal("eval", toy_run, *args)
    for part in parts:
        assert part in message


def test_eval_of_a_model_needs_to_be_told_whose_questions(refusal, letters):
    message = refusal("eval", letters / "model")
    assert "has no questions" in message
    assert "--experiment" in message


# -- sample --------------------------------------------------------------------------------------


def test_sample_prints_a_line_a_completion(grpo, toy_run):
    args = ("sample", toy_run, "--prompt", "583=", "--samples", "3", "--max-new-tokens", "3")
    found = grpo(*args)
    assert len(found) == 3
    for line in found:
        assert line.keys() == {"text", "num_tokens", "truncated", "log_prob"}
        assert line["num_tokens"] == len(line["text"]) + (not line["truncated"])
        assert line["truncated"] == (len(line["text"]) == 3)
        assert line["log_prob"] < 0
    assert grpo(*args) == found
    assert grpo(*args, "--seed", "1") != found


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--prompt", "5x3="], ["'x'", "alphabet"]),
        (["--prompt", ""], ["empty prompt"]),
        (["--prompt", "1=", "--samples", "0"], ["samples is 0", "at least 1"]),
        (["--prompt", "1=", "--top-p", "0"], ["top_p is 0", "above 0 and at most 1"]),
        (["--prompt", "1=", "--max-new-tokens", "0"], ["max_new_tokens is 0"]),
        (["--prompt", "1=", "--chat"], ["chat turns", "plain text"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_sample_refuses_what_it_cannot_draw(args, parts, refusal, toy_run):
    message = refusal("sample", toy_run, *args)
    for part in parts:
        assert part in message


def test_sample_of_chat_turns_needs_a_template(refusal, letters):
    message = refusal("sample", letters / "model", "--prompt", "1", "--chat")
    assert "no chat template" in message


# -- export --------------------------------------------------------------------------------------


def test_export_writes_a_model_directory_with_the_runs_parameters(grpo, refusal, letters):
    target = letters / "exported"
    where = ("--model", letters / "model", "--run-dir", letters / "run")
    fields = ("--steps", "1", *SMALL, "--eval-questions", "0")
    grpo("run", letters / "letters.py", *where, *fields)
    assert grpo("export", letters / "run", target) == [{"directory": str(target), "step": 1}]
    original = letters / "model"
    names = {path.name for path in original.iterdir()}
    assert {path.name for path in target.iterdir()} == names | {"README.md"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (original / name).read_bytes()
    generation, before = (
        json.loads((place / "generation_config.json").read_text()) for place in (target, original)
    )
    assert generation == before | {"eos_token_id": [2]}
    config = json.loads((original / "config.json").read_text())
    assert json.loads((target / "config.json").read_text()) == config | {"dtype": "float32"}

    tensors, before = load_file(target / WEIGHTS), load_file(original / WEIGHTS)
    assert tensors.keys() == before.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        assert tensor.shape == before[name].shape
        assert not np.array_equal(tensor, before[name]), f"{name} was not trained"
    with safe_open(target / WEIGHTS, framework="np") as file:
        assert file.metadata() == {"format": "pt"}

    network = pretrained(str(target))
    checkpoints = Checkpoints(letters / "run" / "checkpoints")
    step, trained = checkpoints.restore_params(network.shapes)
    checkpoints.close()
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, network.load(), trained)

    if importlib.util.find_spec("torch"):
        from transformers import LlamaForCausalLM

        _, info = LlamaForCausalLM.from_pretrained(target, output_loading_info=True)
        assert not any(info.values()), info

    # A second time it is refused, and the first is left as it is.
    written = toys.contents(target)
    message = refusal("export", letters / "run", target)
    assert str(target) in message
    assert "--run-dir" not in message  # there is no such option here
    assert toys.contents(target) == written

    prompt = ("--prompt", "583=", "--samples", "2", "--max-new-tokens", "8", "--temperature", "0")
    texts = [grpo("sample", place, *prompt) for place in (target, letters / "run")]
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][1]
    assert texts[0][0]["log_prob"] == 0.0


def test_export_of_a_toy_is_refused(refusal, toy_run, tmp_path):
    assert "toy" in refusal("export", toy_run, tmp_path / "there")
    assert not list(tmp_path.iterdir())


def test_export_of_what_is_no_run_is_refused(refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal("export", tmp_path / "empty", tmp_path / "there")
    assert str(tmp_path / "empty") in message
    assert not (tmp_path / "there").exists()


def test_a_run_whose_checkpoints_are_gone_is_named_as_such(refusal, tmp_path, toy_run):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((toy_run / "config.json").read_bytes())
    for command in (["eval", run], ["export", run, tmp_path / "there"]):
        assert "no finished checkpoint" in refusal(*command)
    assert not (tmp_path / "there").exists()
    assert toys.contents(run).keys() == {"config.json"}


# -- report --------------------------------------------------------------------------------------


def test_report_is_written_anew_from_the_logs(grpo, toy_run):
    page = toy_run / "report.html"
    page.unlink()
    assert grpo("report", toy_run) == [str(page)]
    assert page.read_text().endswith("</html>\n")


def test_report_refuses_what_is_no_run(refusal, tmp_path):
    assert "holds no run" in refusal("report", tmp_path)
    assert not list(tmp_path.iterdir())


# -- score ---------------------------------------------------------------------------------------


def test_score_reads_a_runs_completions(grpo, toy_run):
    groups = toys.lines(toy_run, "completions.jsonl")
    rows = [row for group in groups for row in group["completions"]]
    *found, last = grpo("score", "toy", toy_run / "completions.jsonl")
    assert [line["reward"] for line in found] == [row["reward"] for row in rows]
    assert [line["completion"] for line in found] == [row["text"] for row in rows]
    assert [line["line"] for line in found] == [n // 4 + 1 for n in range(len(rows))]
    assert last["rewards"] == ["max_of_three"]
    assert last["completions"] == len(rows)
    assert last["mean_reward"] == pytest.approx(np.mean([row["reward"] for row in rows]))


def test_score_reads_json_lines(grpo, tmp_path):
    lines = [
        {"completion": " 49.", "answer": 49},
        {"completions": ["50", " 49"], "answer": 50},
        {"completions": [{"text": "7", "num_tokens": 2}, {"text": "x"}], "answer": 7},
        {"completion": "12"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / "answers.jsonl").write_text(text)
    *found, last = grpo("score", "quickstart", tmp_path / "answers.jsonl", "--answer", "12")
    assert [line["reward"] for line in found] == [1, 1, 0, 1, 0, 1]
    assert [line["line"] for line in found] == [1, 3, 3, 5, 5, 7]
    assert last == {"rewards": ["sums"], "completions": 6, "mean_reward": pytest.approx(4 / 6)}


def test_score_reads_plain_lines(grpo, tmp_path, monkeypatch):
    (tmp_path / "answers.txt").write_text(' 49\n49 is it\nno idea\n494\n"49"\n')
    args = ("--answer", "49")
    *found, last = grpo("score", "quickstart", tmp_path / "answers.txt", *args)
    assert [line["reward"] for line in found] == [1, 1, 0, 0, 0]
    assert last["mean_reward"] == pytest.approx(0.4)
    monkeypatch.setattr(sys, "stdin", io.StringIO((tmp_path / "answers.txt").read_text()))
    assert grpo("score", "quickstart", "-", *args) == [*found, last]


@pytest.mark.parametrize("answer", ["8", '"8"'])
def test_score_compares_with_an_answer_of_the_tasks_kind(answer, grpo, tmp_path):
    # The toy's answers are texts, and "8" is one as it stands on a command line.
    (tmp_path / "answers.jsonl").write_text('{"completion": "8"}\n{"completion": "7"}\n')
    *found, _ = grpo("score", "toy", tmp_path / "answers.jsonl", "--answer", answer)
    assert [line["reward"] for line in found] == [1.0, 0.5]


def test_score_of_nothing_has_no_mean(grpo, tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    (last,) = grpo("score", "toy", tmp_path / "empty")
    assert last == {"rewards": ["max_of_three"], "completions": 0, "mean_reward": None}


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("plain text", ["line 2", "--answer"]),
        ('{"completion": "8"}', ["line 2", "--answer"]),
        ('{"text": "8", "answer": "8"}', ["line 2", "completion"]),
        ('{"completion": 8, "answer": "8"}', ["line 2", "completion"]),
        ('{"completions": 8, "answer": "8"}', ["line 2", "completion"]),
        ('{"completions": null, "answer": "8"}', ["line 2", "completion"]),
        ('{"completions": "8", "answer": "8"}', ["line 2", "completion"]),
        ('{"completions": ["8", null], "answer": "8"}', ["line 2", "completion"]),
        ('{"completions": [{"txt": "8"}], "answer": "8"}', ["line 2", "completion"]),
    ],
)
def test_score_names_a_line_that_it_cannot_use(line, parts, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"completion": "8", "answer": "8"}\n' + line + "\n")
    with pytest.raises(SystemExit):
        call("score", "toy", tmp_path / "bad.jsonl")
    error = capsys.readouterr().err
    for part in parts:
        assert part in error


def test_score_does_not_take_a_cut_off_json_line_for_an_answer(tmp_path, capsys):
    (tmp_path / "cut.jsonl").write_text('{"completion": "8", "answer": "8"}\n{"completion": "8')
    with pytest.raises(SystemExit):
        call("score", "toy", tmp_path / "cut.jsonl", "--answer", '"8"')
    assert "line 2" in capsys.readouterr().err


def test_score_of_an_experiment_file(grpo, letters, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"completion": "8", "answer": "8"}')
    found, _ = grpo("score", letters / "letters.py", tmp_path / "answers.jsonl")
    assert found["reward"] == ord("8") % 7


def test_score_needs_no_questions(grpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no train.jsonl here
    (tmp_path / "answers.jsonl").write_text('{"completion": "So it is 72.", "answer": "72"}')
    found, _ = grpo("score", "gsm8k", "answers.jsonl")
    assert found["reward"] == 1.0


# -- help ----------------------------------------------------------------------------------------

HELP = """
import contextlib, io, json, sys
from grpo_jax import cli
for args in json.loads(sys.argv[1]):
    sys.argv = ["grpo-jax", *args, "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            cli.main()
    except SystemExit as stop:
        assert stop.code in (0, None), (args, stop.code)
    loaded = sorted({"jax", "jaxlib", "flax", "optax", "orbax", "transformers"} & set(sys.modules))
    print(json.dumps([out.getvalue(), loaded]))
"""


def test_help_of_every_level_says_what_there_is_and_loads_no_jax():
    wanted = {
        (): ["run", "eval", "sample", "export", "report", "score"],
        ("run",): ["EXPERIMENT", "--field"],
        ("run", "toy"): ["--group-size", "--kl-coef", "--resume", "G, completions of each prompt"],
        ("run", "quickstart"): ["--model", "--run-dir", "smollm2-135m-instruct"],
        ("eval",): ["--experiment", "--questions", "--samples"],
        ("sample",): ["--prompt", "--temperature", "--top-k"],
        ("export",): ["run directory", "Hugging Face"],
        ("report",): ["report.html"],
        ("score",): ["--answer", "completions.jsonl"],
    }
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(list(wanted))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for parts, line in zip(wanted.values(), done.stdout.splitlines(), strict=True):
        text, loaded = json.loads(line)
        assert loaded == []
        for part in parts:
            assert part in text


def test_the_command_is_installed():
    command = pathlib.Path(sys.executable).with_name("grpo-jax")
    done = subprocess.run([command, "run", "to"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean toy?" in done.stderr
    assert "Traceback" not in done.stderr
