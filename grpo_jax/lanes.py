"""Who is decoded where: lanes of rows, and how completions move between them.

A lane holds up to g completions of one prompt, so that its prompt's keys and values are read once
for all of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """N lanes of g rows, each of which decodes a completion or is idle. On the device while tokens
    are drawn, NumPy while the host moves them.

    Attributes:
        prompt: [N] int32, whose completions a lane holds; -1 for nobody's.
        member: [N, g] int32, which of its prompt's completions a row decodes.
        count: [N, g] int32, tokens it has drawn.
        token: [N, g] int32, the last of them.
        alive: [N, g] bool, to be continued; the other rows are idle.
    """

    prompt: Any
    member: Any
    count: Any
    token: Any
    alive: Any

    def needed(self, width: Any) -> jax.Array:
        """How many lanes of `width` rows its completions would take; int32 scalar."""
        same = self.prompt[:, None] == self.prompt[None, :]
        rows = jnp.where(same, self.alive.sum(axis=1)[None, :], 0).sum(axis=1)
        first = ~(same & jnp.tri(len(self.prompt), k=-1, dtype=bool)).any(axis=1)
        return jnp.where(first, -(-rows // width), 0).sum()


class Moves(NamedTuple):
    """New lanes [N', g'], and where the old ones had what they hold.

    Attributes:
        lanes: the new ones.
        prefix: [N'] int32, the lane that has the prompt; lanes of all parts, one after another.
        lane: [N', g'] int32, where the completion was, in the first part; and
        row: [N', g'] int32, the row there.
        kept: [N', g'] bool, False where it was not there: idle rows, and new ones.
    """

    lanes: Lanes
    prefix: np.ndarray
    lane: np.ndarray
    row: np.ndarray
    kept: np.ndarray


def moved(parts: Sequence[Lanes], shape: tuple[int, int]) -> Moves:
    """All completions that are alive in lanes of another shape, from the first lane on.

    Args:
        parts: lanes, of the host; a prompt's are all in one part. The first are being decoded, the
            others are about to be.
        shape: (N', g'), large enough.

    Raises:
        ValueError: they do not fit.

    >>> old = Lanes(np.array([7, 8]), *[np.array([[0, 1, 2], [0, 1, 2]])] * 3,
    ...             alive=np.array([[True, False, True], [False, False, True]]))
    >>> moves = moved([old], (2, 2))
    >>> moves.lanes.prompt.tolist(), moves.lanes.member.tolist(), moves.kept.tolist()
    ([7, 8], [[0, 2], [2, 0]], [[True, True], [True, False]])
    """
    places = [np.nonzero(part.alive) for part in parts]
    sizes = [len(lane) for lane, _ in places]
    part = np.repeat(np.arange(len(parts)), sizes)
    lane, row = (np.concatenate(x) for x in zip(*places, strict=True))
    starts = np.cumsum([0] + [len(p.prompt) for p in parts[:-1]])

    def of_rows(name: str) -> np.ndarray:
        taken = zip(parts, places, strict=True)
        return np.concatenate([getattr(part, name)[place] for part, place in taken])

    prompt = np.concatenate([p.prompt[at] for p, (at, _) in zip(parts, places, strict=True)])
    order = np.argsort(prompt, kind="stable")
    part, lane, row, prompt = part[order], lane[order], row[order], prompt[order]

    num_lanes, width = shape
    rank = np.arange(len(prompt)) - np.searchsorted(prompt, prompt)  # among its prompt's
    to = np.cumsum(rank % width == 0) - 1, rank % width
    if len(prompt) and to[0][-1] >= num_lanes:
        raise ValueError(
            f"{len(prompt)} completions of {len(np.unique(prompt))} prompts take "
            f"{to[0][-1] + 1} lanes of {width}; there are {num_lanes}"
        )

    def placed(values: np.ndarray, at: Any = to, size: Any = shape, other: int = 0) -> np.ndarray:
        placed = np.full(size, other, values.dtype)
        placed[at] = values
        return placed

    names = ("member", "count", "token", "alive")
    return Moves(
        Lanes(
            placed(prompt, to[0], num_lanes, -1),
            *(placed(of_rows(name)[order]) for name in names),
        ),
        placed((starts[part] + lane).astype(np.int32), to[0], num_lanes),
        placed(np.where(part == 0, lane, 0).astype(np.int32)),
        placed(np.where(part == 0, row, 0).astype(np.int32)),
        placed(part == 0),
    )


def halvings(
    shape: tuple[int, int], *, narrowest: int, fewest_rows: int, most: int
) -> list[tuple[int, int]]:
    """A shape, and those to move into when they are enough, each with half the rows of the last.

    In narrower lanes as long as they are wider than `narrowest` or there is but one, then in fewer.

    >>> halvings((4, 8), narrowest=2, fewest_rows=4, most=3)
    [(4, 8), (4, 4), (4, 2), (2, 2)]
    """
    shapes = [shape]
    for _ in range(most):
        num_lanes, width = shapes[-1]
        if num_lanes * width == 1:
            break
        if num_lanes == 1 or width > narrowest:
            shapes.append((num_lanes, -(-width // 2)))
        else:
            shapes.append((-(-num_lanes // 2), width))
    return [s for s in shapes if s == shape or s[0] * s[1] >= fewest_rows]
