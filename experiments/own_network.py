"""GRPO on a network of your own: a small Flax NNX model on the toy's task.

Largest of three digits, nothing pretrained, nothing downloaded. The model is a function of tokens
[B, S] -> logits [B, S, V] and has no cache, so that it reads its sequences again for each token.
`models.adapters` does the same for plain functions and for Equinox modules.

Run:      python -m experiments.own_network
Measured: 2 cores (x86-64, no GPU), Python 3.11, jax 0.10.2, 2026-11-23; --seed 0: held-out
          reward .076 before and .640 after 100 steps; 25 s of training, another run beside it.
"""

import dataclasses

import grpo_jax
from experiments import toy
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(toy.Config):
    """The largest of three digits, by a network of your own."""

    model: str = "own"


def task(config: Config) -> tasks.Task:
    return tasks.MaxOfThree()


def network(config: Config):
    import jax.numpy as jnp
    from flax import nnx

    from grpo_jax.models.adapters import from_nnx
    from grpo_jax.models.network import own_network
    from grpo_jax.models.settings import Settings
    from grpo_jax.tasks.max_of_three import ALPHABET
    from grpo_jax.tokenizer import CharTokenizer

    class Model(nnx.Module):
        def __init__(self, vocab_size: int, width: int, longest: int, rngs: nnx.Rngs):
            self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
            self.places = nnx.Embed(longest, width, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
            self.inner = nnx.Linear(width, 4 * width, rngs=rngs)
            self.outer = nnx.Linear(4 * width, width, rngs=rngs)
            self.head = nnx.Linear(width, vocab_size, rngs=rngs)

        def __call__(self, tokens):
            x = self.embedding(tokens) + self.places(jnp.arange(tokens.shape[1]))[None]
            x = x + self.attention(x, mask=nnx.make_causal_mask(tokens))
            return self.head(x + self.outer(nnx.gelu(self.inner(x))))

    tokenizer = CharTokenizer(ALPHABET)
    longest = config.max_prompt_tokens + config.max_new_tokens
    model = Model(len(tokenizer), 64, longest, nnx.Rngs(config.seed))
    policy, params = from_nnx(model)
    return own_network(policy, params, tokenizer, Settings.of(config))


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        network=network(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
