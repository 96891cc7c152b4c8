"""A network ready to run: a policy, its tokenizer and its initial parameters."""

import dataclasses
import datetime
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from grpo_jax.keys import INITIAL, stream_key
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import decoder_policy, init_params, param_shapes
from grpo_jax.models.directory import open_directory
from grpo_jax.models.hub import model_directory
from grpo_jax.models.layers import Compute
from grpo_jax.models.loading import dtype_of, keys_of, load_params
from grpo_jax.models.lora import adapted_policy, adapter_shapes, init_adapters, merged
from grpo_jax.models.peft import save_adapters
from grpo_jax.models.rotary import Dynamic, LongRope
from grpo_jax.models.saving import Provenance, save_model
from grpo_jax.models.settings import DEFAULTS, Settings
from grpo_jax.models.stacking import check_alike, separated, stacked
from grpo_jax.policy import Policy
from grpo_jax.tokenizer import HFTokenizer, Tokenizer
from grpo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Network:
    """What a run needs of a model.

    Attributes:
        policy: the network's functions.
        tokenizer: text <-> ids.
        load: () -> the initial parameters that are trained, in new buffers at each call.
        shapes: their tree as shapes and dtypes.
        description: for people: family, number of parameters, where from.
        has_experts: some of its layers are mixtures of experts.
        policy_for: (length) -> the policy for sequences of up to so many tokens, where that makes a
            difference; None where it makes none.
        load_frozen: () -> the parameters beside them that are not, for `TrainState.frozen`; None
            where all are trained.
        export: (whole parameters, target directory, provenance) writes a model directory; None
            where there is none to write (a toy).
        export_adapters: (adapters, target directory, provenance) writes those alone; None where
            there are none.
    """

    policy: Policy
    tokenizer: Tokenizer
    load: Callable[[], Params]
    shapes: Params
    description: str
    has_experts: bool = False
    policy_for: Callable[[int], Policy] | None = None
    load_frozen: Callable[[], Params] | None = None
    export: Callable[[Params, Path, Provenance], None] | None = None
    export_adapters: Callable[[Params, Path, Provenance], None] | None = None

    def policy_up_to(self, longest: int) -> Policy:
        """Its functions for sequences of up to so many tokens.

        Raises:
            ValueError: it has fewer positions.
        """
        return self.policy_for(longest) if self.policy_for else self.policy

    def whole(self, params: Params) -> Params:
        """What the policy takes, from the parameters that are trained."""
        if self.load_frozen is None:
            return params
        return {"trained": params, "frozen": self.load_frozen()}


def pretrained(model: str, settings: Settings = DEFAULTS) -> Network:
    """The embedded default, a local Hugging Face directory, or a hub id.

    Weights are not read before `load` or `load_frozen` is called.

    Args:
        model: by its name.
        settings: all else that is chosen.

    Raises:
        ValueError: no such model, a directory that cannot be used, sequences longer than its
            positions, or adapters for nothing; says why and what works.
    """
    directory = open_directory(model_directory(model))
    config = directory.config
    if config.num_labels:
        raise ValueError(
            f"{directory.path} holds a model with a score head (ForSequenceClassification), which "
            "says no next token; it can be a reward model, not a policy"
        )
    date = datetime.date.fromisoformat(settings.date) if settings.date else None
    tokenizer = HFTokenizer(directory.path, directory.stop_ids, config.vocab_size, date)
    directory = dataclasses.replace(directory, stop_ids=tokenizer.stop_ids)  # its own among them
    load = functools.partial(load_params, directory, dtype=settings.param_dtype)
    network = _network(config, tokenizer, load, model, settings, directory.max_positions)
    lora = settings.lora
    if lora is None:
        return dataclasses.replace(
            network,
            export=lambda params, target, origin: save_model(
                separated(params), directory, target, origin
            ),
        )
    return dataclasses.replace(
        network,
        export=lambda params, target, origin: save_model(
            merged(separated(params["frozen"]), separated(params["trained"]), lora),
            directory,
            target,
            origin,
        ),
        export_adapters=lambda params, target, origin: save_adapters(
            separated(params), lora, directory, target, origin
        ),
    )


def from_scratch(
    config: DecoderConfig, tokenizer: Tokenizer, settings: Settings = DEFAULTS
) -> Network:
    """A small decoder with random parameters, for toys and tests."""

    def load() -> Params:
        params = init_params(config, stream_key(settings.seed, INITIAL))
        dtype = jnp.dtype(settings.param_dtype)
        return jax.tree.map_with_path(
            lambda path, x: x.astype(dtype_of(keys_of(path), dtype)), params
        )

    return _network(config, tokenizer, load, "random decoder", settings)


def own_network(
    policy: Policy, params: Params, tokenizer: Tokenizer, settings: Settings = DEFAULTS
) -> Network:
    """A network of your own (`adapters`).

    Args:
        policy: its functions.
        params: its initial parameters.
        tokenizer: text <-> ids.
        settings: those of the run.

    Raises:
        ValueError: settings that only the decoder here follows.
    """
    plain = dataclasses.replace(
        DEFAULTS, longest=settings.longest, seed=settings.seed, date=settings.date
    )
    for field in dataclasses.fields(Settings):
        asked, default = getattr(settings, field.name), getattr(plain, field.name)
        if asked != default:
            raise ValueError(
                f"{field.name} is {asked}, which a network of your own does not follow; leave it "
                "out"
            )
    shapes = jax.eval_shape(lambda: params)
    # Each time in new buffers: a state is donated.
    return Network(
        policy,
        tokenizer,
        lambda: jax.tree.map(jnp.array, params),
        shapes,
        f"a network of your own, {_millions(shapes)} parameters",
    )


def _network(
    config: DecoderConfig,
    tokenizer: Tokenizer,
    load: Callable[[], Params],
    name: str,
    settings: Settings,
    max_positions: int = 0,
) -> Network:
    dtype, lora = settings.compute_dtype, settings.lora
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    param_dtype = jnp.dtype(settings.param_dtype)
    has_experts = any(layer.experts for layer in config.layers)
    if settings.keep_routing and not has_experts:
        raise ValueError("keep_routing is True, but this network has no experts; leave it out")
    cache_dtype = "" if settings.cache_dtype in ("auto", dtype) else settings.cache_dtype
    if jnp.dtype(cache_dtype or dtype).itemsize > jnp.dtype(dtype).itemsize:
        raise ValueError(
            f"cache_dtype is {cache_dtype}, but keys and values are computed in {dtype}: a wider "
            "cache holds nothing more; leave it out"
        )
    scalings = (layer.rotary.scaling for layer in config.layers if layer.rotary)
    by_length = any(isinstance(scaling, Dynamic | LongRope) for scaling in scalings)

    def policy_for(longest: int) -> Policy:
        if 0 < max_positions < longest:
            raise ValueError(
                f"prompts and completions of up to {longest} tokens are asked for, but {name} has "
                f"{max_positions} positions (max_position_embeddings); lower max_prompt_tokens or "
                "max_new_tokens"
            )
        compute = Compute(
            dtype,
            settings.attention_kernels,
            longest=longest if by_length else 0,  # else one policy for all lengths
            remat=settings.remat,
            keep_routing=settings.keep_routing,
            cache_dtype=cache_dtype,
        )
        return adapted_policy(config, lora, compute) if lora else decoder_policy(config, compute)

    policy = policy_for(settings.longest)
    if settings.scan_layers:
        check_alike(config)

    def laid_out(params: Params) -> Params:
        return stacked(params, config.num_layers) if settings.scan_layers else params

    def load_laid_out() -> Params:
        return laid_out(load())

    def shapes_laid_out(shapes: Params) -> Params:
        return jax.eval_shape(laid_out, shapes)

    shapes = param_shapes(config)
    described = f"{name}, {_millions(shapes)} parameters, computed in {dtype}"
    if lora is None:
        kept = jax.tree.map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, dtype_of(keys_of(path), param_dtype)),
            shapes,
        )
        return Network(
            policy,
            tokenizer,
            load_laid_out,
            shapes_laid_out(kept),
            described,
            has_experts,
            policy_for,
        )
    key = jax.random.fold_in(stream_key(settings.seed, INITIAL), 1)
    adapters = adapter_shapes(config, lora)
    return Network(
        policy=policy,
        tokenizer=tokenizer,
        load=lambda: laid_out(init_adapters(shapes, lora, key)),
        shapes=shapes_laid_out(adapters),
        description=f"{described}; {_millions(adapters)} in adapters are trained",
        has_experts=has_experts,
        policy_for=policy_for,
        load_frozen=load_laid_out,
    )


def _millions(shapes: Params) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
