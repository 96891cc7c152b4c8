import itertools

import numpy as np
import pytest

from grpo_jax.lanes import Lanes, halvings, moved


def random_lanes(random, num_lanes, width, prompts, share):
    """Lanes in which each completion (prompt, member) is at most once."""
    prompt = np.sort(random.choice(prompts, num_lanes)).astype(np.int32)
    member = np.arange(num_lanes * width, dtype=np.int32).reshape(num_lanes, width)
    count, token = random.integers(1, 99, (2, num_lanes, width), np.int32)
    order = random.permutation(num_lanes)
    alive = random.random((num_lanes, width)) < share
    return Lanes(prompt[order], member, count, token, alive)


def rows(lanes):
    """{(prompt, member): (lane, row, count, token)} of the completions alive."""
    return {
        (int(lanes.prompt[n]), int(lanes.member[n, g])): (
            n,
            g,
            int(lanes.count[n, g]),
            int(lanes.token[n, g]),
        )
        for n, g in zip(*np.nonzero(lanes.alive), strict=True)
    }


def needed(lanes, width):
    """Lanes by a plain loop."""
    alive = {}
    for prompt, _ in rows(lanes):
        alive[prompt] = alive.get(prompt, 0) + 1
    return sum(-(-count // width) for count in alive.values())


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_nothing_twice(seed):
    random = np.random.default_rng(seed)
    old = random_lanes(random, 6, 4, range(3), random.random())
    new = random_lanes(random, 2, 5, range(3, 5), 0.8)
    for width in (1, 2, 3, 4, 7):
        fits = needed(old, width) + needed(new, width)
        assert int(old.needed(width)) == needed(old, width)
        moves = moved([old, new], (fits + 1, width))
        expected = {k: v[2:] for k, v in (rows(old) | rows(new)).items()}
        assert {k: v[2:] for k, v in rows(moves.lanes).items()} == expected
        for (prompt, member), (n, g, *_) in rows(moves.lanes).items():
            part, start = (old, 0) if prompt < 3 else (new, 6)
            assert part.prompt[moves.prefix[n] - start] == prompt
            assert moves.kept[n, g] == (part is old)
            if part is old:
                was = rows(old)[prompt, member]
                assert (moves.lane[n, g], moves.row[n, g]) == was[:2]
        assert not moves.kept[~moves.lanes.alive].any()
        assert (moves.lanes.prompt[~moves.lanes.alive.any(axis=1)] == -1).all()
        if fits:
            with pytest.raises(ValueError, match=f"{fits} lanes of {width}; there are {fits - 1}"):
                moved([old, new], (fits - 1, width))


def test_each_shape_has_about_half_the_rows_of_the_one_before():
    for shape in [(4, 8), (16, 16), (1, 64), (5, 3), (32, 1), (7, 6), (1, 1), (2, 1)]:
        narrowest = -(-shape[1] // 4)
        sizes = [n * g for n, g in halvings(shape, narrowest=narrowest, fewest_rows=1, most=3)]
        for size, half in itertools.pairwise(sizes):
            assert size / 2 <= half <= 0.75 * size
