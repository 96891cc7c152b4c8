"""Writes docs/objectives.md from the code: each paper, its choices, its defaults, its tests.

    python scripts/objectives_page.py            writes the page
    python scripts/objectives_page.py --check    exit code 1 if the page is not as the code is

What it says of a choice is read off the `Objective` that a preset returns, the rest off docstrings,
signatures, provoked errors and the imports of the tests.
"""

import argparse
import pathlib
import sys

from page import papers, parts, refusals, tests
from page.markdown import code, table

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "objectives.md"

INTRODUCTION = """\
<!-- Made from the code by scripts/objectives_page.py: edit that or a docstring, and run it. -->

# Objectives

A paper of this family answers seven questions, and some papers add a bonus for entropy. Here the
answers are the fields of one [`Objective`](../grpo_jax/objectives/base.py), and most of them are
plain functions of arrays from [`grpo_jax/ops`](../grpo_jax/ops). So a paper is a short file that
names a function for each question.

This page is made from those files: [what a field means](#the-fields), [how to compose](#compose),
[what is refused](#what-is-refused), [all papers at a glance](#the-papers), [one by
one](#one-by-one), and [all parts](#the-parts). [Adding a paper](adding-a-paper.md) shows how to
make one more.
"""
LOSS = """\
The loss of a batch is

```text
{formula}
```

`prepare` computes credit and selection once a step, from rewards [P, G] of P prompts with G
completions each. The loss is then a function of the log-probabilities [P, G, T] of their T tokens.
The weights come from the mask of all that one optimizer step sees, before it is cut into
micro-batches, so that the parts add up to the whole. Corrections are factors without gradient, and
act on the policy term alone. β is `kl_coef`, and c is `entropy_coef`. A KL in the reward is no term
of the loss: it is a part of the credit.
"""
COMPOSE = """\
## Compose

Take a paper, and replace what is to differ. Bind settings with `functools.partial`:

```python
import dataclasses
from functools import partial

from grpo_jax.objectives import dapo
from grpo_jax.ops import advantages, corrections

objective = dataclasses.replace(
    dapo(clip_eps_high=0.3),
    advantages=advantages.leave_one_out,
    corrections=(partial(corrections.truncated, max_ratio=2.0),),
)
```

A function is given the arrays that its parameters name. [Adding a
paper](adding-a-paper.md#the-names) lists the names that there are in each place. A function of your
own takes part in the same way.
"""
REFUSED = """\
## What is refused

A combination that makes no sense is a `ValueError` that says why, and what to do instead. These are
the messages, for an example of each kind; `replace` is `dataclasses.replace`.
"""
OVERVIEW = """\
## The papers

By date of the paper. Numbers in brackets are the settings that an objective binds; its section
below names them. The ratio is that to π_old, the policy at the start of the updates, or to μ, the
policy that sampled, as the sampler reported it.
"""
ONE_BY_ONE = """\
## One by one

Equations and remarks are those of the docstrings; sg stops the gradient. The last table of an
objective lists the fields that it sets, with all settings in effect: also those that it leaves at
the function's default. `prepare` needs what is named under the table, beside the rollout and its
rewards. With several updates a step, it needs `old_log_probs` too.

Tests of all: each objective is held to its equation, written out as plain loops in
[oracles/papers.py](../tests/oracles/papers.py), and goes through {tests}.
"""
PARTS = """\
## The parts

The functions of [`grpo_jax/ops`](../grpo_jax/ops) that return something. They need jax and chex,
and no `Objective`. Shapes are those of the docstrings: P prompts, G completions of each, T tokens,
V vocabulary. The last column counts the objectives above that have the function in a field.
"""


def refused() -> str:
    found = refusals.answers()
    pieces = []
    for head, examples in (
        ("When an objective is made:", refusals.COMPOSING),
        (
            "When the next step is to be sampled ahead (`draw_ahead`, `--sample-ahead`):",
            refusals.AHEAD,
        ),
        ("In `prepare`, with `rewards` of shape [P, G]:", refusals.PREPARING),
        (
            f"In the loss, where `by_token` is `{refusals.BY_TOKEN}` and `one_loss` is "
            f"`{refusals.ONE_LOSS}`:",
            refusals.IN_THE_LOSS,
        ),
    ):
        rows = [(code(example), str(found[example])) for example in examples]
        pieces += [head + "\n", table(("this", "gets the answer"), rows)]
    return "\n".join(pieces)


def page() -> str:
    """All of it."""
    of_all = ", ".join(map(tests.link, tests.of_all_presets()))
    pieces = [
        INTRODUCTION,
        papers.questions(),
        LOSS.format(formula=papers.formula()),
        "### The fields\n",
        papers.fields(),
        COMPOSE,
        REFUSED,
        refused(),
        OVERVIEW,
        papers.overview(),
        ONE_BY_ONE.format(tests=of_all),
        *papers.sections(),
        PARTS,
        *parts.tables(),
    ]
    return "\n".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes docs/objectives.md from the code.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    made = page()
    if PAGE.exists() and PAGE.read_text() == made:
        return
    if check:
        sys.exit("docs/objectives.md is not as the code is: run python scripts/objectives_page.py")
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
