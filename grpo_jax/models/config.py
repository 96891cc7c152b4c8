"""What a decoder computes: one configuration for all families."""

import dataclasses
from typing import Any, Literal

from grpo_jax.models.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of gated MLPs, of which each token takes a few.

    Attributes:
        count: E.
        taken: experts a token takes.
        width: inner width of each.
        sigmoid: scores are sigmoids of the router's logits; else their softmax over all experts.
        normalised: the weights of those taken are divided by their sum.
        scale: and multiplied by this.
        groups: experts come in so many groups, of which a token takes `groups_taken`.
        groups_taken: the others cannot be chosen.
        by_best_two: a group counts by the sum of its two best scores; else by its best.
        corrected: a bias for each expert is added where experts are chosen, not to their weights.
        shared_width: inner width of the experts that every token takes; 0 for none.
    """

    count: int
    taken: int
    width: int
    sigmoid: bool = False
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_taken: int = 1
    by_best_two: bool = False
    corrected: bool = False
    shared_width: int = 0

    def __post_init__(self):
        if not 1 <= self.taken <= self.count:
            raise ValueError(f"{self.taken} of {self.count} experts cannot be taken")
        if self.count % self.groups or not 1 <= self.groups_taken <= self.groups:
            raise ValueError(
                f"{self.groups_taken} of {self.groups} groups of {self.count} experts cannot be "
                "taken; groups are of equal size"
            )


@dataclasses.dataclass(frozen=True)
class Latent:
    """Attention through a vector that all heads share (MLA). arXiv:2405.04434, section 2.1.

    Attributes:
        query_rank: of the queries' two matrices; 0 where queries are one product.
        key_rank: width of the shared vector, from which keys and values follow.
        plain_width: channels of a head without positions.
        value_width: channels of a head's value.
    """

    query_rank: int
    key_rank: int
    plain_width: int
    value_width: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """In what the layers of a decoder differ.

    Attributes:
        rotary: positions; None for none.
        window: a token sees itself and the window - 1 tokens before it; 0 for all.
        experts: in place of the MLP; None for the MLP.
    """

    rotary: Rotary | None
    window: int = 0
    experts: Experts | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, and the numbers that its function depends on.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        intermediate_size: inner width of the MLP.
        num_heads, num_kv_heads, head_dim: of queries; of keys and values; channels of each.
        layers: what each layer is.
        norm_eps: of every norm.
        unit_offset: norms multiply by 1 + scale (Gemma).
        norm_before: attention and MLP see the normalised stream.
        norm_after: what they return is normalised before it is added.
        head_norm: queries and keys are normalised, each head ("head") or all heads together
            ("all"), before they are turned.
        attention_bias, output_bias, mlp_bias: of queries, keys and values; of the output; of the
            three matrices of the MLP.
        attention_scale: scores are multiplied by it; 0 stands for head_dim^-0.5.
        score_cap, logit_cap: c · tanh(x / c) of attention scores, of logits; 0 for none.
        gelu: the MLP's gate is tanh-approximated GELU; else SiLU.
        embedding_scale: embeddings are multiplied by it.
        tie_embeddings: the head is the embedding.
        num_labels: outputs of a score head in the place of the one over the vocabulary; 0 for a
            language model.
        latent: attention by latent vectors; `num_kv_heads` then means nothing, and `head_dim` is
            that of a query.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    norm_eps: float = 1e-5
    unit_offset: bool = False
    norm_before: bool = True
    norm_after: bool = False
    head_norm: Literal["", "head", "all"] = ""
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    gelu: bool = False
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    num_labels: int = 0
    latent: Latent | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not divide over {self.num_kv_heads} key heads"
            )
        for layer in self.layers:
            if layer.rotary and not self.latent and layer.rotary.width > self.head_dim:
                raise ValueError(
                    f"{layer.rotary.width} channels are to be turned, a head has {self.head_dim}"
                )

    @staticmethod
    def llama(
        *, num_layers: int, head_dim: int, rope_theta: float = 10_000.0, **others: Any
    ) -> "DecoderConfig":
        """A decoder whose layers are all alike, of the Llama shape."""
        layers = (Layer(Rotary(head_dim, rope_theta)),) * num_layers
        return DecoderConfig(head_dim=head_dim, layers=layers, **others)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def scale(self) -> float:
        """Of attention scores."""
        return self.attention_scale or self.head_dim**-0.5
