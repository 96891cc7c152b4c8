"""Slopes by differences, and the support of a draw by sorting."""


def slope(f, x, index, step=1e-6):
    """Central difference of a scalar function in one entry of its argument."""
    up, down = x.copy(), x.copy()
    up[index] += step
    down[index] -= step
    return (f(up) - f(down)) / (2 * step)


def nucleus(probs, top_p):
    """Tokens of the smallest set of likeliest tokens with at least top_p; ties with the last in."""
    order = sorted(range(len(probs)), key=lambda v: -probs[v])
    total, kept = 0.0, []
    for v in order:
        if total >= top_p and probs[v] < probs[kept[-1]]:
            break
        kept.append(v)
        total += probs[v]
    return set(kept)
