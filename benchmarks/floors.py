"""What a step must do at least: operations and bytes, counted from the shapes alone.

An operation is a floating-point multiplication or addition of a matrix product; nothing else is
counted, and nothing that an implementation chooses to do twice. A prompt is computed once for its
group, and the last token of a completion predicts nothing, so that the network does not see it.
"""

import dataclasses

from grpo_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Limits:
    """Measured on this machine (`benchmarks.limits`).

    Attributes:
        matrix_flops_per_second: of large products.
        bandwidth_bytes_per_second: read and written.
        few_rows_seconds: the products of one decoding step of all rows, alone.
    """

    matrix_flops_per_second: float
    bandwidth_bytes_per_second: float
    few_rows_seconds: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One GRPO step of P prompts of L tokens, and G completions of T tokens each."""

    config: DecoderConfig
    num_prompts: int
    group_size: int
    prompt_len: int
    new_tokens: int
    itemsize: int = 4

    @property
    def rows(self) -> int:
        return self.num_prompts * self.group_size

    @property
    def body_params(self) -> int:
        """Parameters of the matrices that each token passes."""
        c = self.config
        attention = 2 * c.num_heads + 2 * c.num_kv_heads
        mlp = 3 * c.hidden_size * c.intermediate_size
        return c.num_layers * (c.hidden_size * c.head_dim * attention + mlp)

    @property
    def head_params(self) -> int:
        return self.config.hidden_size * self.config.vocab_size

    def _attention_flops(self, pairs: int) -> int:
        """Scores and weighted values of so many pairs of a query and a key, in all layers."""
        c = self.config
        return 4 * c.num_layers * c.num_heads * c.head_dim * pairs

    @property
    def prompt_flops(self) -> int:
        """The prompts, once each, and no head."""
        length = self.prompt_len
        pairs = self.num_prompts * length * (length + 1) // 2
        return 2 * self.body_params * self.num_prompts * length + self._attention_flops(pairs)

    @property
    def completion_flops(self) -> int:
        """The completions after their prompts, and the head at each of their tokens."""
        seen = self.new_tokens - 1
        pairs = self.rows * (self.prompt_len * seen + seen * (seen + 1) // 2)
        head = 2 * self.head_params * self.rows * self.new_tokens
        return 2 * self.body_params * self.rows * seen + self._attention_flops(pairs) + head

    @property
    def forward_flops(self) -> int:
        return self.prompt_flops + self.completion_flops

    @property
    def repeated_forward_flops(self) -> int:
        """The same with each prompt computed again for each of its completions."""
        return self.group_size * self.prompt_flops + self.completion_flops

    def decode_bytes(self) -> float:
        """Read in one decoding step, on average: the weights, each key and value once."""
        c = self.config
        slots = self.num_prompts * self.prompt_len + self.rows * self.new_tokens / 2
        keys_and_values = 2 * c.num_layers * c.num_kv_heads * c.head_dim * slots
        return self.itemsize * (self.body_params + self.head_params + keys_and_values)

    def decode_step_seconds(self, limits: Limits) -> float:
        """Of one token of each row: the larger of what bytes and operations take."""
        pairs = self.rows * (self.prompt_len + self.new_tokens / 2)
        attention = self._attention_flops(int(pairs)) / limits.matrix_flops_per_second
        bytes_take = self.decode_bytes() / limits.bandwidth_bytes_per_second
        return max(bytes_take, limits.few_rows_seconds + attention)

    def seconds(self, limits: Limits) -> dict[str, float]:
        """The floor of each part of a step, in seconds."""
        rate = limits.matrix_flops_per_second
        prefill = self.prompt_flops / rate
        return {
            "sample": prefill + (self.new_tokens - 1) * self.decode_step_seconds(limits),
            "score": 0.0,
            "reference": self.forward_flops / rate,
            "update": 3 * self.forward_flops / rate,
        }
