"""Rotary positions, with every scaling of the frequencies that checkpoints ask for.

Frequencies are NumPy, computed once when a model is built; turning is JAX.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Interpolated:
    """All frequencies divided by `factor`. arXiv:2306.15595."""

    factor: float

    def scaled(self, plain: np.ndarray, rotary: "Rotary", length: int) -> np.ndarray:
        return plain / self.factor


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """A base that grows with the length, beyond the one trained at (NTK-aware).

    Attributes:
        factor: how far the base would reach.
        trained_length: up to which nothing is changed.
    """

    factor: float
    trained_length: int

    def scaled(self, plain: np.ndarray, rotary: "Rotary", length: int) -> np.ndarray:
        stretch = max(length, self.trained_length) / self.trained_length
        growth = self.factor * stretch - (self.factor - 1)
        theta = rotary.theta * growth ** (rotary.width / (rotary.width - 2))
        return _frequencies(theta, rotary.width)


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Long waves divided by `factor`, short ones kept, those between blended (Llama 3.1).

    Attributes:
        factor: of the long waves.
        low, high: waves longer than trained_length / low are long, shorter than
            trained_length / high short.
        trained_length: before the model was extended.
    """

    factor: float
    low: float
    high: float
    trained_length: int

    def scaled(self, plain: np.ndarray, rotary: "Rotary", length: int) -> np.ndarray:
        turns = self.trained_length * plain / (2 * np.pi)  # in the length trained at
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return kept * plain + (1 - kept) * plain / self.factor


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Waves that turned seldom in training divided by `factor`. arXiv:2309.00071.

    Attributes:
        factor: of the slow waves.
        trained_length: before the model was extended.
        fast, slow: turns in that length; between them a ramp over channels.
        truncate: the ends of the ramp are whole channels.
    """

    factor: float
    trained_length: int
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def scaled(self, plain: np.ndarray, rotary: "Rotary", length: int) -> np.ndarray:
        def channel(turns: float) -> float:
            """Where a wave turns so often in the length trained at."""
            wave = self.trained_length / (turns * 2 * math.pi)
            return rotary.width * math.log(wave) / (2 * math.log(rotary.theta))

        first, last = channel(self.fast), channel(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotary.width - 1)
        last = last + 0.001 if first == last else last
        divided = np.clip((np.arange(rotary.width // 2) - first) / (last - first), 0, 1)
        return plain * (1 - divided) + plain / self.factor * divided


@dataclasses.dataclass(frozen=True)
class LongRope:
    """A divisor for each frequency, others beyond the length trained at. arXiv:2402.13753.

    Attributes:
        short, long: [H / 2] divisors, up to the length trained at and beyond it.
        trained_length: before the model was extended.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained_length: int

    def scaled(self, plain: np.ndarray, rotary: "Rotary", length: int) -> np.ndarray:
        return plain / np.array(self.long if length > self.trained_length else self.short)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How the positions of one kind of layer are turned into angles.

    Attributes:
        width: channels of a head that are turned, even; the others are left as they are.
        theta: base of the frequencies (`rope_theta`).
        scaling: of the frequencies; None for theta^(-2i / width) as they are.
        amplitude: cosine and sine are multiplied by it ("attention factor").
        interleaved: pairs are channels (2i, 2i + 1) and not (i, i + width / 2). What is returned
            has them in halves all the same, in queries and keys alike.
    """

    width: int
    theta: float = 10_000.0
    scaling: Interpolated | Dynamic | Llama3 | Yarn | LongRope | None = None
    amplitude: float = 1.0
    interleaved: bool = False

    def __post_init__(self):
        if self.width % 2:
            raise ValueError(f"{self.width} channels are to be turned; they go in pairs")

    def frequencies(self, length: int = 0) -> np.ndarray:
        """[width / 2] float32, radians a position.

        Args:
            length: the longest sequence that there will be; where a scaling looks at it, one
                choice for all positions, so that keys turned early fit queries turned late.
        """
        plain = _frequencies(self.theta, self.width)
        scaled = plain if self.scaling is None else self.scaling.scaled(plain, self, length)
        return scaled.astype(np.float32)

    def angles(self, positions: jax.Array, *, length: int = 0) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine of the angles at these positions.

        Args:
            positions: [..., S] int.
            length: as for `frequencies`.

        Returns:
            Two arrays [..., S, 1, width / 2] float32; the same for all heads and layers of a kind.
        """
        # A product of scalars and not a matrix product: on TPU that would round to bfloat16.
        frequencies = jnp.expand_dims(self.frequencies(length), range(positions.ndim + 1))
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        cos, sin = jnp.cos(angles) * self.amplitude, jnp.sin(angles) * self.amplitude
        # XLA would rather compute them again in each layer than keep them.
        return jax.lax.optimization_barrier((cos, sin))

    def turn(self, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Turns each pair of channels by the angle of its position.

        Args:
            x: [..., S, heads, H] float, H at least `width`.
            angles: of `angles`.

        Returns:
            As `x`.

        Reference: RoFormer, arXiv:2104.09864, equation 34.
        """
        turned, rest = x[..., : self.width].astype(jnp.float32), x[..., self.width :]
        cos, sin = angles
        if self.interleaved:
            low, high = turned[..., 0::2], turned[..., 1::2]
        else:
            low, high = jnp.split(turned, 2, axis=-1)
        parts = [(low * cos - high * sin).astype(x.dtype), (high * cos + low * sin).astype(x.dtype)]
        return jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)


def _frequencies(theta: float, width: int) -> np.ndarray:
    return theta ** (-np.arange(0, width, 2) / width)


def extended_amplitude(factor: float, weight: float = 1.0) -> float:
    """The amplitude of a model extended by `factor`: 0.1 · weight · ln(factor) + 1.

    Reference: YaRN, arXiv:2309.00071, section 3.4.

    >>> round(extended_amplitude(40.0), 4)
    1.3689
    """
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def longrope_amplitude(factor: float, trained_length: int) -> float:
    """The amplitude of LongRoPE: sqrt(1 + ln(factor) / ln(trained length)).

    Reference: LongRoPE, arXiv:2402.13753, as Phi-3's own code has it.

    >>> longrope_amplitude(1.0, 4096)
    1.0
    """
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained_length))
