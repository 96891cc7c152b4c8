"""Writes the tables of `docs/conformance.md`: our presets beside what other libraries compute.

    python -m scripts.conformance            # writes the blocks that are marked there
    python -m scripts.conformance --check    # exit code 1 unless they are what it would write

The libraries' numbers are those of `tests/fixtures/peers.npz` (`scripts/make_peer_fixture.py` asked
them); ours are computed anew, in float64 on the CPU. None of the libraries is needed.
"""

import ast
import difflib
import functools
import inspect
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import objectives
from grpo_jax.types import Rollout
from scripts import peer_compositions

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
FIXTURE = ROOT / "tests" / "fixtures" / "peers.npz"
BLOCK = re.compile(
    r"(?P<start><!-- (?P<name>\w+): written by [^\n]*-->)\n.*?(?P<end><!-- end -->)", re.DOTALL
)
CASES = ("binary", "real", "near", "first", "stale")
KINDS = ("advantages", "loss", "grad")
LIBRARIES = {
    "trl": "TRL",
    "verl": "verl",
    "openrlhf": "OpenRLHF",
    "google-tunix": "Tunix",
    "nemo-rl": "NeMo-RL",
}
# Programs of a few hundred numbers: compiling them is what takes time.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PRESETS: dict[str, Callable[[], objectives.Objective]] = {
    "grpo": objectives.grpo,
    "dr_grpo": functools.partial(objectives.dr_grpo, max_new_tokens=peer_compositions.WIDTH),
    "dapo": objectives.dapo,
    "gspo": objectives.gspo,
    "cispo": objectives.cispo,
    "rloo": objectives.rloo,
}


@functools.cache
def fixture() -> dict[str, np.ndarray]:
    """The arrays of `peers.npz`."""
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


@functools.cache
def records() -> list[dict[str, Any]]:
    """What the rows of its results are: library, version, name, settings, values, run."""
    return json.loads(str(fixture()["info"]))["records"]


def theirs(row: int) -> dict[str, np.ndarray]:
    """A record's advantages and gradient [5, P, G, T] and loss [5], in the order of `CASES`."""
    return {kind: np.stack([fixture()[f"{c}/{kind}"][row] for c in CASES]) for kind in KINDS}


def ours(objective: objectives.Objective) -> dict[str, np.ndarray]:
    """The same of an objective of ours, through `prepare` and `loss`; float64, compiled once."""

    def one(mask, log_probs, ref_log_probs, old_log_probs, rewards):
        rollout = Rollout(
            prompt=jnp.zeros([mask.shape[0], 1], jnp.int32),
            prompt_mask=jnp.ones([mask.shape[0], 1], bool),
            completion=jnp.zeros(mask.shape, jnp.int32),
            completion_mask=mask,
            sampler_log_probs=old_log_probs,
            support_log_mass=jnp.zeros(mask.shape),
            truncated=jnp.zeros(mask.shape[:-1], bool),
        )
        ref = ref_log_probs if objective.needs_reference else None
        batch = objectives.prepare(objective, rollout, rewards, old_log_probs, ref)
        loss, grad = jax.value_and_grad(objective.loss)(log_probs, batch)
        credit = jnp.where(mask, jnp.broadcast_to(batch.advantages, mask.shape), 0.0)
        return dict(zip(KINDS, (credit, loss, grad), strict=True))

    shared = [fixture()[name] for name in ("mask", "log_probs", "ref_log_probs")]
    found = []
    with jax.enable_x64(True):
        compiled = jax.jit(one, compiler_options=FAST)
        for case in CASES:
            own = [fixture()[f"{case}/{name}"] for name in ("old_log_probs", "rewards")]
            found.append(jax.device_get(compiled(*shared, *own)))
    return {kind: np.stack([result[kind] for result in found]) for kind in KINDS}


def errors(row: int) -> dict[str, float]:
    """The largest difference of a record and its composition, relative to the largest entry.

    Of advantages and gradient case by case; of the loss, over the cases, since it can be 0 in one.
    """
    wanted, found = theirs(row), ours(composition(records()[row])())
    assert all(array.dtype == np.float64 for array in found.values())
    largest = {kind: by_case(wanted[kind]) for kind in ("advantages", "grad")}
    largest["loss"] = by_case(wanted["loss"]).max()
    if records()[row]["library"] == "google-tunix":
        # Rounded to float32 as a sum of terms of this size, which may cancel.
        largest["loss"] = largest["advantages"]
    return {k: float((by_case(found[k] - wanted[k]) / largest[k]).max()) for k in KINDS}


def by_case(array: np.ndarray) -> np.ndarray:
    """[5, ...] -> [5], the largest magnitude of each case."""
    return np.abs(array).reshape(len(CASES), -1).max(axis=1)


def composition(record: dict[str, Any]) -> Callable[[], objectives.Objective]:
    """The function of `peer_compositions` that belongs to a record."""
    library = record["library"].removeprefix("google-").replace("-", "_")
    return getattr(peer_compositions, f"{library}_{record['name']}_{record['settings']}")


def differences(record: dict[str, Any]) -> dict[str, str]:
    """Question -> how the library answers it, where the preset does otherwise."""
    lines = (inspect.getdoc(composition(record)) or "").splitlines()
    return dict(line.split(": ", 1) for line in lines if line != "none")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def norm_ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a) / np.linalg.norm(b))


# -- the page ----------------------------------------------------------------------------------


def page(text: str) -> str:
    """The page with its generated blocks anew; the text around them is written by hand."""
    blocks = {"libraries": libraries, "shared": shared, "defaults": defaults_called_grpo}
    blocks |= {name: functools.partial(section, name) for name in PRESETS}
    found = [match["name"] for match in BLOCK.finditer(text)]
    if sorted(found) != sorted(blocks):
        raise ValueError(f"{PAGE.name} has the blocks {found}; it must have {list(blocks)}, once")
    return BLOCK.sub(lambda m: f"{m['start']}\n\n{blocks[m['name']]()}\n\n{m['end']}", text)


def libraries() -> str:
    """What was asked."""
    table = ["| library | version | numbers from | records |", "|---|---|---|---|"]
    for library, title in LIBRARIES.items():
        own = [record for record in records() if record["library"] == library]
        how = "its own code" if own[0]["run"] else "**written out from its source, not run**"
        table.append(f"| {title} | {own[0]['version']} | {how} | {len(own)} |")
    return "\n".join(table)


def shared() -> str:
    """What the compositions import, and the parts that several of them use."""
    text = inspect.getsource(peer_compositions).partition("\n\n\n# -- GRPO")[0]
    return python(text.partition('"""\n\n')[2])


def section(name: str) -> str:
    """The records of a paper's name: a table, and the code."""
    call = f"{name}(max_new_tokens={peer_compositions.WIDTH})" if name == "dr_grpo" else f"{name}()"
    wanted = ours(PRESETS[name]())["grad"]
    table = [
        f"| library | settings | differences from `{call}` | cosine | norm ratio | stale |",
        "|---|---|---|---|---|---|",
    ]
    code = []
    for row, record in enumerate(records()):
        if record["name"] != name:
            continue
        pairs = list(zip(theirs(row)["grad"], wanted, strict=True))
        cosines = [f"{cosine(*pair):.4f}" for pair in pairs]
        norms = [f"{norm_ratio(*pair):.3f}" for pair in pairs]
        named = [f"**{question}** {answer}" for question, answer in differences(record).items()]
        settings = record["settings"]
        if record["values"]:
            settings += ": " + ", ".join(f"`{k}={v!r}`" for k, v in record["values"].items())
        cells = [LIBRARIES[record["library"]], settings, "; ".join(named) or "none"]
        cells += [", ".join(cosines[:-1]), ", ".join(norms[:-1]), f"{cosines[-1]}, {norms[-1]}"]
        table.append("| " + " | ".join(cells) + " |")
        code.append(source(composition(record)))
    return "\n".join(table) + "\n\n" + python("\n\n\n".join(code))


def python(code: str) -> str:
    return f"```python\n{code}\n```"


def source(function: Callable[..., Any]) -> str:
    """Its text, without the docstring."""
    text = inspect.getsource(function)
    (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef)
    docstring = definition.body[0]
    lines = text.splitlines()
    del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines)


def defaults_called_grpo() -> str:
    """Every pair of the libraries' defaults of that name; and how many agree."""
    chosen = [
        row
        for row, record in enumerate(records())
        if (record["name"], record["settings"]) == ("grpo", "default")
    ]
    table = ["| | " + " | ".join(CASES) + " |", "|---" * (len(CASES) + 1) + "|"]
    agree = dict.fromkeys(CASES, 0)
    pairs = list(itertools.combinations(chosen, 2))
    for pair in pairs:
        cells = [", ".join(LIBRARIES[records()[row]["library"]] for row in pair)]
        for case, x, y in zip(CASES, *(theirs(row)["grad"] for row in pair), strict=True):
            angle, norm = cosine(x, y), norm_ratio(y, x)
            agree[case] += angle > 0.999 and abs(norm - 1) < 0.01
            cells.append(f"{angle:.4f}, {norm:.3f}")
        table.append("| " + " | ".join(cells) + " |")
    counts = ", ".join(f"{agree[case]} in *{case}*" for case in CASES)
    verdict = "refuted" if all(agree[case] == len(pairs) for case in CASES) else "not refuted"
    table += ["", f"Of {len(pairs)} pairs, this many agree in that sense: {counts}."]
    return "\n".join([*table, f"The claim is {verdict}."])


def main() -> None:
    found = PAGE.read_text()
    text = page(found)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
    elif found != text:
        print(*difflib.unified_diff(found.splitlines(), text.splitlines(), lineterm=""), sep="\n")
        sys.exit(f"{PAGE.name} is not what this writes; run it without --check")


if __name__ == "__main__":
    main()
