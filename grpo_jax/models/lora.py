"""Low-rank adapters: narrow matrices beside frozen ones, in a tree of their own.

`layers_0/attention/query` of the adapters is {"down": [r, in], "up": [out, r]}, and what they add
to that kernel's product is alpha / r · up (down x). Training holds gradients, optimizer state and
checkpoints of these alone; the reference policy is the same weights without them.

Reference: LoRA, arXiv:2106.09685, section 4.1.
"""

import dataclasses
import difflib
import fnmatch
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Decoder, param_shapes, policy_of
from grpo_jax.models.layers import PLAIN, Compute
from grpo_jax.policy import Policy
from grpo_jax.types import STACK, Params


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels get adapters, and what kind.

    Attributes:
        rank: r.
        alpha: what they add is multiplied by alpha / rank.
        targets: patterns of kernels' paths as a shell has them, such as "layers_*/attention/query";
            a `*` stands for any number of letters, slashes too. Experts of a mixture and routers
            have no adapters; the experts that every token takes do.
        dropout: share of an adapter's inputs that training sets to 0; sampling and the
            log-probabilities of other policies do without, so that ratios to them hold its noise.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("*",)
    dropout: float = 0.0

    def __post_init__(self):
        if not self.targets:
            raise ValueError("targets of the adapters are empty; name at least one pattern")
        if self.rank < 1:
            raise ValueError(f"the rank of adapters is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha of the adapters is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout of the adapters is {self.dropout}; at least 0 and below 1")

    @property
    def scale(self) -> float:
        """What the adapters add is multiplied by it."""
        return self.alpha / self.rank


def kernels(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and kernel [out, in] of every product that can have an adapter."""
    for name, inner in params.items():
        if not isinstance(inner, dict):
            continue
        if "kernel" in inner:
            if name != "router":  # which would move tokens to other experts
                yield (*path, name), inner["kernel"]
        else:
            yield from kernels(inner, (*path, name))


def targets(params: Params, lora: Lora) -> dict[tuple[str, ...], Any]:
    """The kernels that the patterns name.

    Raises:
        ValueError: a pattern names none.
    """
    found = {"/".join(path): (path, kernel) for path, kernel in kernels(params)}
    chosen: dict[tuple[str, ...], Any] = {}
    for pattern in lora.targets:
        names = fnmatch.filter(found, pattern)
        if not names:
            near = difflib.get_close_matches(pattern, found, n=3, cutoff=0.0)
            raise ValueError(
                f"the adapter pattern {pattern!r} names no kernel of this model that can have one "
                f"(routed experts and routers cannot); there are {', '.join(sorted(near))} and "
                "others: change --lora-targets"
            )
        chosen |= dict(found[name] for name in names)
    return chosen


def init_adapters(params: Params, lora: Lora, key: jax.Array) -> Params:
    """Adapters that add nothing yet: `down` uniform in ±1 / sqrt(in), `up` zero; float32.

    Args:
        params: of the network, or their shapes.
        lora: which and what kind.
        key: of the draws.
    """
    adapters: Params = {}
    for number, (path, kernel) in enumerate(sorted(targets(params, lora).items())):
        out, width = kernel.shape
        bound = 1 / math.sqrt(width)
        draw = jax.random.fold_in(key, number)
        down = jax.random.uniform(draw, (lora.rank, width), minval=-bound, maxval=bound)
        *parents, name = path
        place = functools.reduce(lambda tree, part: tree.setdefault(part, {}), parents, adapters)
        place[name] = {"down": down, "up": jnp.zeros([out, lora.rank])}
    return adapters


def adapter_shapes(config: DecoderConfig, lora: Lora) -> Params:
    """The tree of adapters as shapes and dtypes."""
    shapes = param_shapes(config)
    return jax.eval_shape(lambda: init_adapters(shapes, lora, jax.random.key(0)))


def merged(params: Params, adapters: Params, lora: Lora) -> Params:
    """The parameters with what adapters add in their kernels: kernel + alpha / r · up down.

    Computed in float32, in the type of the kernel. Takes a tree without adapters as it is.
    """

    def merge(tree: Params, beside: Params) -> Params:
        if "kernel" in tree:
            kernel = tree["kernel"]
            added = jnp.matmul(beside["up"], beside["down"], precision="highest") * lora.scale
            return tree | {"kernel": (kernel.astype(jnp.float32) + added).astype(kernel.dtype)}
        return tree | {name: merge(tree[name], inner) for name, inner in beside.items()}

    return merge(params, adapters)


@functools.cache
def adapted_policy(config: DecoderConfig, lora: Lora, compute: Compute = PLAIN) -> Policy:
    """The decoder with adapters beside it.

    Its parameters are {"trained": adapters, "frozen": the decoder's}, as `TrainState.whole` has
    them; without "trained" they are the policy that training began with.
    """
    compute = dataclasses.replace(compute, adapter_scale=lora.scale, adapter_dropout=lora.dropout)

    def apply(params: Params, name: str, *args: Any) -> Any:
        model = Decoder(config, compute, STACK in params["frozen"])
        variables = {"params": params["frozen"], "adapters": params.get("trained", {})}
        rngs = {"dropout": params["key"]} if "key" in params else None
        return model.apply(variables, *args, method=name, rngs=rngs)

    noisy = (lambda params, key: params | {"key": key}) if lora.dropout else None
    return policy_of(apply, compute, noisy)
