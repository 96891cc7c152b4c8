"""Writes `docs/conformance.md`: our presets beside what other libraries compute under their names.

    python -m scripts.conformance            # writes the page
    python -m scripts.conformance --check    # exit code 1 unless the page is what it would write

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
CASES = ("binary", "real", "near", "first", "stale")
KINDS = ("advantages", "loss", "grad")
LIBRARIES = {
    "trl": "TRL",
    "verl": "verl",
    "openrlhf": "OpenRLHF",
    "google-tunix": "Tunix",
    "nemo-rl": "NeMo-RL",
}
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
        compiled = jax.jit(one)
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


def page() -> str:
    sections = [section(name) for name in PRESETS]
    return "\n".join([intro(), *sections, defaults_called_grpo(), LIMITS])


def intro() -> str:
    rows = []
    for library, title in LIBRARIES.items():
        own = [record for record in records() if record["library"] == library]
        how = "its own code" if own[0]["run"] else "**written out from its source, not run**"
        rows.append(f"| {title} | {own[0]['version']} | {how} | {len(own)} |")
    prelude = inspect.getsource(peer_compositions).partition("\n\n\n# -- GRPO")[0]
    prelude = prelude.partition('"""\n\n')[2]
    return INTRO.format(libraries="\n".join(rows), total=len(records()), prelude=prelude)


def section(name: str) -> str:
    title, note = NOTES[name]
    call = f"{name}(max_new_tokens={peer_compositions.WIDTH})" if name == "dr_grpo" else f"{name}()"
    rows = [i for i, record in enumerate(records()) if record["name"] == name]
    wanted = ours(PRESETS[name]())["grad"]
    table = [
        f"| library | settings | differences from `{call}` | cosine | norm ratio | stale |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        record = records()[row]
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
    code = [source(composition(records()[row])) for row in rows]
    blocks = [f"## {title}", note.strip(), "\n".join(table)]
    blocks += ["```python\n" + "\n\n".join(code) + "\n```"]
    return "\n\n".join(blocks) + "\n"


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
    chosen = [
        row
        for row, record in enumerate(records())
        if record["name"] == "grpo" and record["settings"] == "default"
    ]
    table = [
        "| | " + " | ".join(CASES) + " |",
        "|---" * (len(CASES) + 1) + "|",
    ]
    agree = dict.fromkeys(CASES, 0)
    pairs = list(itertools.combinations(chosen, 2))
    for a, b in pairs:
        first, second = (LIBRARIES[records()[row]["library"]] for row in (a, b))
        cells = [f"{first}, {second}"]
        for case, x, y in zip(CASES, theirs(a)["grad"], theirs(b)["grad"], strict=True):
            angle, norm = cosine(x, y), norm_ratio(y, x)
            agree[case] += angle > 0.999 and abs(norm - 1) < 0.01
            cells.append(f"{angle:.4f}, {norm:.3f}")
        table.append("| " + " | ".join(cells) + " |")
    nemo_rl = next(row for row in chosen if records()[row]["library"] == "nemo-rl")
    outlier = np.abs(theirs(nemo_rl)["advantages"][CASES.index("real")]).max()
    refuted = all(count == len(pairs) for count in agree.values())
    return DEFAULTS.format(
        table="\n".join(table),
        pairs=len(pairs),
        counts=", ".join(f"{agree[case]} in {case}" for case in CASES),
        verdict="refuted" if refuted else "not refuted",
        outlier=f"{outlier:.2f}",
    )


INTRO = """\
<!-- Written by `python -m scripts.conformance`; change it there. -->

# What other libraries compute under the papers' names

A paper's name on a setting does not say which update is made. This page puts the presets of
`grpo_jax.objectives` beside what five libraries compute under the same names: how far apart the
gradients are, what differs, and the composition of our parts that computes what the library does.

## How it was measured

One small batch of fixed numbers went through each library: 3 prompts, 4 completions of each, 1 to 8
tokens each, 57 tokens in all, as one micro-batch on the CPU. What a model, a sampler and a reward
would have said was put in by hand; all else is the library's. Asked for were the advantages, the
loss, and its gradient with respect to the log-probabilities of the tokens.

| library | version | numbers from | records |
|---|---|---|---|
{libraries}

2026-11-22, Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0, numpy 2.4.6, jax 0.10.2; float64,
but for Tunix, which computes in float32, and a few float32 steps in TRL and OpenRLHF.

```
python scripts/make_peer_fixture.py        # asks the libraries: tests/fixtures/peers.npz
python -m scripts.conformance              # writes this page from their answers; needs none of them
python -m scripts.conformance --check      # is the page what it would write?
```

**NeMo-RL was not run**: the package of that name on the package index is empty. Its formulas were
written out from `loss_functions.py` at 006907a and `advantage_estimator.py` at 00925dd, and its rows
say what that reading computes.

Each of the {total} records has a composition below, and none is approximate.
[`tests/objectives/test_conformance.py`](../tests/objectives/test_conformance.py) holds advantages, loss
and gradient of each, in float64, against the library's, in all five cases, to 1e-6 of the largest
entry. The largest differences found on 2026-11-22, relative to it:

| | advantages | loss | gradient | limited by |
|---|---|---|---|---|
| TRL | 1.5e-8 | 1.5e-8 | 1.5e-8 | a float32 factor in its std |
| verl | 3e-16 | 2e-15 | 5e-16 | |
| OpenRLHF | 5e-9 | 8e-8 | 5e-9 | a float32 KL |
| Tunix | 3e-16 | 1.7e-8 | 2.0e-7 | a float32 loss |
| NeMo-RL (written out) | 4e-16 | 3e-15 | 5e-16 | |

The loss is compared with the largest of the five cases, for in one it can be 0. Tunix's is compared
with the largest advantage: it is a float32 sum of terms of that size, which can cancel. In its GSPO they
cancel to about a hundredth, and there the two losses differ by 2e-8, which is 2e-6 of what is left.

## How to read the tables

**Cosine** and **norm ratio** compare the library's gradient with that of our preset at its defaults:
the direction, and their norm divided by ours. Four numbers are the cases *binary*, *real*, *near* and
*first*; *stale* has a column of its own (cosine, norm ratio).

| case | log-ratios to the old policy | rewards | what it is for |
|---|---|---|---|
| binary | about 0.3; one ratio is 1.24 | 0 and 1, the last group all equal | clips at 0.2 and 0.28, on both sides, for both signs |
| real | as in binary | those plus noise of 0.3, the last group all equal | divisors of the reward |
| near | about 0.002 | as in binary | GSPO's bounds of 3e-4 and 4e-4 |
| first | 0 | as in binary | the first update: credit, reduction and KL alone |
| stale | as in binary, and ratios of 3.7 and 12.2 where A < 0, 6.0 where A > 0 | as in binary | dual clips and caps |

In *stale* these three tokens have more than half of the squared norm of the gradients of `grpo()`,
`dapo()` and `cispo()`. A cosine there says whether a library lets them through, and little about
anything else.

**Settings**: *default* is the library's own values once the method is named, *recipe* what its
documents or scripts set for it. Values are spelt as there (NeMo-RL's by what they do); what is not
listed is the library's default.

**Differences** go by the question that they answer: credit (`advantages` of an `Objective`), ratio
(`log_ratio`), trust region (`surrogate`), reduction (`weights`), KL (`kl`, `kl_coef`, `kl_in_reward`) and
selection (`select`). The tests check that no question with another answer is left out.

Where a library divides by a group's standard deviation, it is that of G - 1; ours is that of G. With
G = 4 this is a factor of √(3/4) = 0.866 on the policy's part of the gradient, and without a KL term it
changes no direction. The constants added to it, 1e-4 and less, act on the fourth digit.

## What the compositions share

```python
{prelude}
```
"""

NOTES = {
    "grpo": (
        "GRPO",
        """
The paper takes the mean over each completion's tokens first, and subtracts 0.04 · k3. Of the
defaults, only Tunix's has that reduction, and none that KL. k1 as a loss (Tunix) has the gradient β
times the token's weight on every token, whatever the reference is; on-policy its expectation is 0.
OpenRLHF takes its KL after the group is normalised, so that a group of equal rewards still has a
gradient. TRL's recipe is its paper index's for DeepSeekMath, with DeepSeek-R1's numbers.
""",
    ),
    "dr_grpo": (
        "Dr. GRPO",
        """
The paper takes out two normalisers, the std and the completion's length, and has no KL. TRL's
`loss_type` alone keeps the std, OpenRLHF's estimator a division by tokens. The constant is
`max_completion_length` in TRL; in Tunix, and in verl where `loss_scale_factor` is unset, it is the padded
width of the batch, which differs from batch to batch. Here all are 8. NeMo-RL has nothing of this name.
""",
    ),
    "dapo": (
        "DAPO",
        """
The name on which the libraries agree. OpenRLHF's 0.27 for 0.28 shows in the loss alone, for no ratio
here is between the two. Dynamic sampling, overlong filtering and shaping are outside
of what is compared. TRL, verl, OpenRLHF and NeMo-RL have no default of this name. NeMo-RL's recipe also
moves rewards of 0 and 1 to -1 and 1 beforehand, which only the constant added to the std can tell.
Tunix's length punishment, by its source, compares the number of characters of the text with a limit
in tokens.
""",
    ),
    "gspo": (
        "GSPO",
        """
A mean of logarithms moves little: the paper's bounds are 3e-4 and 4e-4, and 0.2 is 500 times as far.
Only TRL's and verl's recipes have the paper's; OpenRLHF's and NeMo-RL's own recipes keep 0.2. The ratio
of GSPO-token has the gradient of the sequence's wherever the advantage is one for all tokens;
OpenRLHF's default is not such a case. By its source, TRL with a KL multiplies that of each token by
the ratio of the sequence.
""",
    ),
    "cispo": (
        "CISPO",
        """
Caps on the ratio: 0.2, 1.2, 1.8 and 5. In TRL `epsilon_high` is the cap itself, elsewhere what it is
above 1; unset, TRL's falls back to `epsilon`, and every token with a ratio above 0.2 is scaled by 0.2.
verl's default has a lower bound, which the paper has not in effect. OpenRLHF (`policy_loss_type`) and
Tunix (`loss_algo`) have nothing of this name. TRL's recipe for ScaleRL also scales rewards by the
batch, which this record does not.
""",
    ),
    "rloo": (
        "RLOO",
        """
The widest spread of all names: three places for the KL, three ratios and three reductions. The paper
has no ratio; a completion is one action. Only TRL has one value for a completion, and its product of
ratios makes its norm in *stale* what it is. Only NeMo-RL has no ratio. Ours sums over the tokens of a
completion, so that a mean over tokens has a much smaller norm; and it has the paper's KL of 0.03.
""",
    ),
}

DEFAULTS = """\
## Five defaults called GRPO

Claim (R22): the defaults of different libraries that are called GRPO make different updates. It would be
refuted if every pair of them had a cosine above 0.999 and norms within 1 %. Cosine, and the norm of
the second divided by that of the first:

{table}

Of {pairs} pairs, this many agree in that sense: {counts}.
The claim is {verdict}.

There are three updates, and a fourth on stale data. TRL, verl and OpenRLHF take the mean over all
tokens, with little KL or none, and agree closely; Tunix takes the mean over completions; NeMo-RL divides by
the std of the others. In *stale* verl's dual clip drops the two tokens with
A < 0 that make up two thirds of the squared norm of TRL's gradient. NeMo-RL's norm in *real* comes from its divisor: a completion's own
deviation is not in its scale, and the largest advantage there is {outlier}, where √(G - 1) = 1.73
bounds ours.
"""

LIMITS = """\
## Limits

- One synthetic batch. The cosines and norms are of this batch; that the compositions are equal to the
  libraries holds as far as these five cases can tell.
- Bounds that nothing here reaches are left out of the compositions. verl: log-ratios within ±20 (at
  most 10 for GSPO), KL estimates within ±10. OpenRLHF: log-ratios within ±20, KL and normalised
  rewards within ±10. Tunix: log-ratios within ±20, and at most 10 for GSPO.
- Not exercised: several micro-batches or devices, groups of one, missing rewards, truncated
  completions, entropy terms, corrections for the sampler (TRL with vLLM multiplies the loss by one).
- Recipes were read in copies of the repositories that can be older than the version which was run:
  TRL's paper index is of late 2025, and some flags of OpenRLHF's scripts have other names by now.
- OpenRLHF's defaults are in its command line's parser, which cannot be imported; they were set by hand.
  In verl, the subtraction of the KL from the reward is a line of ours, and so is policy term plus KL
  term, which was found bit-equal to `verl.workers.utils.losses.ppo_loss`. Modules that were not
  installed and not needed for the numbers (flash_attn, deepspeed, vllm, metrax, perfetto) were empty.
- Which release of NeMo-RL holds the files that were read is not known; older copies of its
  `calculate_kl` have no weight, and so plain k3. It adds 1e-8 to numbers of tokens; here that is left out.
"""


def main() -> None:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return
    found = PAGE.read_text() if PAGE.exists() else ""
    if found != text:
        print(*difflib.unified_diff(found.splitlines(), text.splitlines(), lineterm=""), sep="\n")
        sys.exit(f"{PAGE.name} is not what this writes; run it without --check")


if __name__ == "__main__":
    main()
