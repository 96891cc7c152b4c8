"""Each preset under settings and a batch in which all that it does has an effect; and its oracle.

The settings need not be the published ones: that those are the defaults is a test of its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import batches
import jax
from oracles import papers

from grpo_jax import objectives

# Programs of a few hundred numbers: compiling them is what takes time.
FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# With the first of them every bound of every case acts on some tokens and not on others.
SEEDS = (54, 28)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A preset of `objectives`, and the function of the same name in `oracles.papers`."""

    preset: str
    settings: dict[str, Any]
    batch: dict[str, Any]  # of `batches.random_example`

    @functools.cached_property
    def objective(self) -> objectives.Objective:
        return getattr(objectives, self.preset)(**self.settings)

    def example(self, seed: int = SEEDS[0], **changes: Any) -> batches.Example:
        return batches.random_example(seed, **(self.batch | changes))

    def oracle(self, example: batches.Example, **changes: Any) -> Callable:
        return getattr(papers, self.preset)(example, **(self.settings | changes))

    # Two programs a preset and shape, which the tests share.

    @functools.cached_property
    def prepare(self) -> Callable:
        """example -> batch, with weights."""
        return jax.jit(
            lambda x: batches.weighed(self.objective, batches.prepared(self.objective, x)),
            compiler_options=FAST,
        )

    @functools.cached_property
    def run(self) -> Callable:
        """log_probs, entropy, batch -> loss, gradient."""
        return jax.jit(
            functools.partial(batches.loss_and_gradient, self.objective), compiler_options=FAST
        )


BINARY = {"binary": True}
# Bounds of some ten-thousandths need ratios as close to 1, and those of some thousandths.
CLOSE, NEAR = {"drift": 1e-3}, {"drift": 7e-3}
# A product over a whole completion needs ratios that leave a weight to see.
SHORT = {"drift": 0.3, "staleness": 0.3}
DECIDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bnpo": ({}, BINARY),
    "cispo": ({"max_ratio": 2.0, "min_ratio": 0.5}, {}),
    "clip_cov": ({"clip_share": 1.0, "cov_low": 0.2, "cov_high": 1.0}, {}),
    "deepseek_r1": ({"clip_eps": 3.0, "kl_coef": 0.1}, {}),
    "deepseek_v3_2": ({"kl_coef": 0.1}, {}),
    "dr_grpo": ({"max_new_tokens": 9}, {}),
    "gmpo": ({"clip_log_low": 0.3, "clip_log_high": 0.5}, {}),
    "gspo": ({}, CLOSE),
    "gspo_token": ({}, CLOSE),
    "icepop": ({"kl_coef": 0.1}, {}),
    "kl_cov": ({"kl_share": 0.1}, {}),
    "luspo": ({}, NEAR),
    "max_rl": ({}, BINARY),
    "pkpo": ({"k": 2}, {}),
    "skywork_or1": ({"entropy_coef": 0.005}, {}),
    "tis": ({"kl_coef": 0.1}, {}),
    "top_entropy": ({"entropy_share": 0.6}, {}),
    "vespo": ({}, SHORT),
}
PRESETS = [name for name in objectives.__all__ if name not in ("Objective", "prepare")]
CASES = {name: Case(name, *DECIDED.get(name, ({}, {}))) for name in PRESETS}
CASES["dapo_filtered"] = Case("dapo", {"filter_truncated": True}, {})
CASES["tis_alone"] = Case("tis", {}, {})
