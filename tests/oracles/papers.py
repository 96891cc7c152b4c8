"""The papers' objectives as plain loops over prompts, completions and tokens, from what they print.

A function takes a `batches.Example` x, and settings whose defaults are the published numbers (or
what the preset's docstring says instead). It returns the loss as a function of log-probabilities
[P, G, T]. These stand for π where a gradient is wanted; what a paper holds fixed (credit, sg(...),
masks, corrections) reads x.log_probs in their place. So the derivative of the returned function is
the gradient of the paper, and `slopes` takes it: all is analytic in complex numbers too.

Two rules are ours, as papers have no such thing: a completion without tokens is left out of every
mean, and one without a reward has advantage 0.
"""

import cmath
import dataclasses
import math

import numpy as np

from oracles import credit, returns, values

# -- loops -------------------------------------------------------------------------------------


def slopes(loss, x):
    """∂loss/∂log π of each token, by a complex step: exact to the last digits. 0 in the padding."""
    found = np.zeros(x.mask.shape)
    for place in np.argwhere(x.mask):
        point = x.log_probs.astype(complex)
        point[tuple(place)] += 1e-30j
        found[tuple(place)] = loss(point).imag / 1e-30
    return found


def loss_and_slopes(loss, x):
    return loss(x.log_probs).real, slopes(loss, x)


def tokens(row):
    return [t for t, counts in enumerate(row) if counts]


def completions(mask):
    """(p, g) of those that have a token."""
    return [i for i in np.ndindex(mask.shape[:2]) if tokens(mask[i])]


def mean_of_token_means(mask, term):
    """1/B Σ_i 1/|o_i| Σ_t term(i, t)."""
    rows = completions(mask)
    means = [sum(term(i, t) for t in tokens(mask[i])) / len(tokens(mask[i])) for i in rows]
    return sum(means) / len(rows)


def mean_of_token_sums(mask, term):
    """1/B Σ_i Σ_t term(i, t)."""
    rows = completions(mask)
    return sum(term(i, t) for i in rows for t in tokens(mask[i])) / len(rows)


def mean_over_tokens(mask, term):
    """1/Σ_i |o_i| Σ_i Σ_t term(i, t)."""
    places = [(i, t) for i in completions(mask) for t in tokens(mask[i])]
    return sum(term(i, t) for i, t in places) / len(places)


# -- terms -------------------------------------------------------------------------------------


def clip(z, low, high):
    return low if z.real < low else high if z.real > high else z


def bounded(ratio, advantage, low, high):
    """min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A); PPO equation 7."""
    pair = ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage
    return min(pair, key=lambda z: z.real)


def ratio(now, x, i, t):
    """π/π_old of a token."""
    return cmath.exp(now[i][t] - x.old_log_probs[i][t])


def sequence_ratio(now, x, i):
    """(π(o_i)/π_old(o_i))^(1/|o_i|); GSPO equation 7."""
    row = tokens(x.mask[i])
    return cmath.exp(sum(now[i][t] - x.old_log_probs[i][t] for t in row) / len(row))


def k3(now, x, i, t):
    """DeepSeekMath equation 4."""
    quotient = cmath.exp(x.ref_log_probs[i][t] - now[i][t])
    return quotient - cmath.log(quotient) - 1


def penalty(x, coef):
    """β log(π_old/π_ref) of each token: the KL in the reward is a constant of the update."""
    return coef * (x.old_log_probs - x.ref_log_probs)


def lengths(x):
    return x.mask.sum(axis=-1)


# -- DeepSeek ----------------------------------------------------------------------------------


def clipped_with_kl(x, advantage, clip_eps, kl_coef):
    """DeepSeekMath equation 3, for any credit `advantage(i, t)`."""

    def loss(now):
        def term(i, t):
            policy = bounded(ratio(now, x, i, t), advantage(i, t), clip_eps, clip_eps)
            return policy - kl_coef * k3(now, x, i, t)

        return -mean_of_token_means(x.mask, term)

    return loss


def grpo(x, clip_eps=0.2, kl_coef=0.04):
    scores = credit.group_normalize(x.rewards)
    return clipped_with_kl(x, lambda i, t: scores[i], clip_eps, kl_coef)


def grpo_process(x, clip_eps=0.2, kl_coef=0.04):
    """DeepSeekMath 4.1.3: all step rewards of the group as one set, summed to go."""
    scores = returns.process_supervision(x.step_rewards, x.step_ends, x.mask)
    return clipped_with_kl(x, lambda i, t: scores[i][t], clip_eps, kl_coef)


def deepseek_r1(x, clip_eps=10.0, kl_coef=0.001):
    return grpo(x, clip_eps, kl_coef)


def deepseek_v3_2(x, clip_eps=0.2, kl_coef=0.001, max_drift=0.5):
    """Equations 7 to 9: M on the policy term alone, the KL times ρ and through it; ρ = π/μ."""
    x = dataclasses.replace(x, old_log_probs=x.sampler_log_probs)
    scores = credit.group_center(x.rewards)

    def kept(i):
        row = tokens(x.mask[i])
        drift = sum(x.sampler_log_probs[i][t] - x.log_probs[i][t] for t in row) / len(row)
        return 0 if scores[i] < 0 and drift > max_drift else 1

    def loss(now):
        def term(i, t):
            r = ratio(now, x, i, t)
            policy = bounded(r, scores[i], clip_eps, clip_eps)
            return kept(i) * policy - kl_coef * r * k3(now, x, i, t)

        return -mean_of_token_means(x.mask, term)

    return loss


# -- PPO's clip under other credit and other means ---------------------------------------------


def clipped_loss(x, advantage, reduce, low, high, mask=None):
    mask = x.mask if mask is None else mask

    def loss(now):
        return -reduce(mask, lambda i, t: bounded(ratio(now, x, i, t), advantage(i, t), low, high))

    return loss


def dr_grpo(x, max_new_tokens, clip_eps=0.2):
    """1/G Σ_i 1/C Σ_t: C is a constant of the run."""
    scores = credit.group_center(x.rewards) / max_new_tokens
    return clipped_loss(x, lambda i, t: scores[i], mean_of_token_sums, clip_eps, clip_eps)


def dapo(x, clip_eps_low=0.2, clip_eps_high=0.28, filter_truncated=False):
    """Equation 8; 3.4: truncated completions out of loss and count, not out of their group."""
    scores = credit.group_normalize(x.rewards)
    mask = x.mask & ~x.truncated[..., None] if filter_truncated else x.mask
    return clipped_loss(
        x, lambda i, t: scores[i], mean_over_tokens, clip_eps_low, clip_eps_high, mask
    )


def top_entropy(x, entropy_share=0.2, clip_eps_low=0.2, clip_eps_high=0.28):
    """Equation 6, with the quantile between two tokens taken by interpolation, so that
    1 + ⌊ρ (n - 1)⌋ tokens stay, in the sum and in what divides it."""
    scores = credit.group_normalize(x.rewards)
    highest = sorted(x.entropy[x.mask])[-(1 + math.floor(entropy_share * (x.mask.sum() - 1))) :]
    mask = x.mask & (x.entropy >= highest[0])
    return clipped_loss(
        x, lambda i, t: scores[i], mean_over_tokens, clip_eps_low, clip_eps_high, mask
    )


def lite_ppo(x, clip_eps=0.2):
    scores = credit.batch_scaled(x.rewards)
    return clipped_loss(x, lambda i, t: scores[i], mean_over_tokens, clip_eps, clip_eps)


def bnpo(x, clip_eps_low=0.2, clip_eps_high=0.28):
    scores = credit.beta_normalize(x.rewards)
    return clipped_loss(x, lambda i, t: scores[i], mean_of_token_sums, clip_eps_low, clip_eps_high)


def max_rl(x, clip_eps=0.2):
    scores = credit.max_rl(x.rewards)
    return clipped_loss(x, lambda i, t: scores[i], mean_of_token_sums, clip_eps, clip_eps)


def gdpo(x, clip_eps=0.2):
    scores = credit.gdpo(x.rewards_by_function, x.reward_weights)
    return clipped_loss(x, lambda i, t: scores[i], mean_of_token_means, clip_eps, clip_eps)


def otb(x, clip_eps=0.2):
    scores = returns.optimal_token_baseline(x.rewards, x.mask, x.old_log_probs, x.sum_sq_probs)
    return clipped_loss(x, lambda i, t: scores[i][t], mean_over_tokens, clip_eps, clip_eps)


def ppo(x, clip_eps=0.2, kl_coef=0.02, lam=0.95):
    """GAE of token rewards -β k1 with the completion's reward on its last token; then whitened."""
    counted = returns.with_reward(x.rewards, x.mask)
    token_rewards = returns.terminal(x.rewards, counted) - penalty(x, kl_coef)
    scores = values.gae(token_rewards, x.values, counted, lam=lam)
    scores = returns.whiten(scores, counted, 1e-8)
    return clipped_loss(x, lambda i, t: scores[i][t], mean_over_tokens, clip_eps, clip_eps)


def reinforce_plus_plus(x, clip_eps=0.2, kl_coef=0.01):
    """Equations 1, 4 and 5."""
    scores = returns.reinforce_plus_plus(x.rewards, x.mask, penalty(x, kl_coef))
    return clipped_loss(x, lambda i, t: scores[i][t], mean_of_token_means, clip_eps, clip_eps)


def reinforce_plus_plus_baseline(x, clip_eps=0.2, kl_coef=0.01):
    """Equations 6 to 8: the KL is k2, in the loss."""
    scores = returns.reinforce_plus_plus_baseline(x.rewards, x.mask)

    def loss(now):
        def term(i, t):
            k2 = (now[i][t] - x.ref_log_probs[i][t]) ** 2 / 2
            policy = bounded(ratio(now, x, i, t), scores[i][t], clip_eps, clip_eps)
            return policy - kl_coef * k2

        return -mean_of_token_means(x.mask, term)

    return loss


def skywork_or1(x, clip_eps=0.2, entropy_coef=0.0):
    """Equation 3.1 over the groups whose rewards differ; the entropy has a gradient of its own."""
    scores = credit.group_normalize(x.rewards)
    mask = x.mask.copy()
    for p, group in enumerate(x.rewards):
        mask[p] &= len(set(credit.known(group))) > 1

    def loss(now):
        def term(i, t):
            policy = bounded(ratio(now, x, i, t), scores[i], clip_eps, clip_eps)
            return policy + entropy_coef * x.entropy[i][t]

        return -mean_over_tokens(mask, term)

    return loss


# -- a sampler that is not π_old ---------------------------------------------------------------


def corrected_loss(x, weight, reduce, clip_eps, kl_coef=0.0):
    """weight(π_old/μ) min(...) - β k3."""
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        def term(i, t):
            mismatch = math.exp(x.old_log_probs[i][t] - x.sampler_log_probs[i][t])
            policy = bounded(ratio(now, x, i, t), scores[i], clip_eps, clip_eps)
            return weight(mismatch) * policy - kl_coef * k3(now, x, i, t)

        return -reduce(x.mask, term)

    return loss


def tis(x, max_ratio=2.0, clip_eps=0.2, kl_coef=0.0):
    return corrected_loss(x, lambda w: min(w, max_ratio), mean_of_token_means, clip_eps, kl_coef)


def icepop(x, min_ratio=0.5, max_ratio=5.0, clip_eps=0.2, kl_coef=0.0):
    """Equations 1 and 2."""

    def weight(w):
        return w if min_ratio <= w <= max_ratio else 0.0

    return corrected_loss(x, weight, mean_of_token_means, clip_eps, kl_coef)


def decoupled_ppo(x, clip_eps=0.2):
    """AReaL's equation 5."""
    return corrected_loss(x, lambda w: w, mean_over_tokens, clip_eps)


# -- one ratio for a sequence ------------------------------------------------------------------


def gspo(x, clip_eps_low=3e-4, clip_eps_high=4e-4):
    """Equation 5."""
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        rows = completions(x.mask)
        terms = [
            bounded(sequence_ratio(now, x, i), scores[i], clip_eps_low, clip_eps_high) for i in rows
        ]
        return -sum(terms) / len(rows)

    return loss


def gspo_token(x, clip_eps_low=3e-4, clip_eps_high=4e-4):
    """Equations 13 and 14: s_{i,t} = sg(s_i) π/sg(π)."""
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        def term(i, t):
            s = sequence_ratio(x.log_probs, x, i) * cmath.exp(now[i][t] - x.log_probs[i][t])
            return bounded(s, scores[i], clip_eps_low, clip_eps_high)

        return -mean_of_token_means(x.mask, term)

    return loss


def luspo(x, clip_eps_low=2e-3, clip_eps_high=2.5e-3):
    """Equation 7: each sequence's term times |o_i|."""
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        rows = completions(x.mask)
        terms = [
            bounded(sequence_ratio(now, x, i), scores[i], clip_eps_low, clip_eps_high)
            * len(tokens(x.mask[i]))
            for i in rows
        ]
        return -sum(terms) / len(rows)

    return loss


def gmpo(x, clip_log_low=0.4, clip_log_high=0.4):
    """Equation 4: (Π_t |min(ρ A, clip(ρ, e^-ε, e^ε) A)|)^(1/|o_i|) sgn(A).

    |A|^(1/|o_i|) from each of |o_i| factors is |A|.
    """
    scores = credit.group_normalize(x.rewards)
    low, high = math.exp(-clip_log_low), math.exp(clip_log_high)

    def loss(now):
        total = 0.0
        for i in completions(x.mask):
            sign, row, product = math.copysign(1.0, scores[i]), tokens(x.mask[i]), 1.0
            for t in row:
                r = ratio(now, x, i, t)
                product *= sign * min((sign * r, sign * clip(r, low, high)), key=lambda z: z.real)
            total += abs(scores[i]) * product ** (1 / len(row)) * sign
        return -total / len(completions(x.mask))

    return loss


def vespo(x, k_positive=2.0, lambda_positive=3.0, k_negative=3.0, lambda_negative=2.0):
    """Equation 20, with W = π(o_i)/μ(o_i) and its weight held fixed."""
    scores = credit.group_center(x.rewards)

    def weight(i):
        log_ratios = x.log_probs[i] - x.sampler_log_probs[i]
        w = math.prod(math.exp(log_ratios[t]) for t in tokens(x.mask[i]))
        if scores[i] >= 0:
            return w**k_positive * math.exp(lambda_positive * (1 - w))
        return w**k_negative * math.exp(lambda_negative * (1 - w))

    def loss(now):
        return -mean_of_token_sums(x.mask, lambda i, t: weight(i) * scores[i] * now[i][t])

    return loss


# -- other trust regions -----------------------------------------------------------------------


def cispo(x, max_ratio=5.0, min_ratio=0.0):
    """MiniMax-M1, equations 4 and 5."""
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        def term(i, t):
            held = clip(ratio(x.log_probs, x, i, t), min_ratio, max_ratio)
            return held * scores[i] * now[i][t]

        return -mean_over_tokens(x.mask, term)

    return loss


def sapo(x, tau_positive=1.0, tau_negative=1.05):
    scores = credit.group_normalize(x.rewards)

    def loss(now):
        def term(i, t):
            tau = tau_positive if scores[i] > 0 else tau_negative
            gate = 1 / (1 + cmath.exp(-tau * (ratio(now, x, i, t) - 1)))
            return 4 / tau * gate * scores[i]

        return -mean_of_token_means(x.mask, term)

    return loss


def dppo(x, divergence, eps, max_ratio):
    """Equations 12 and 23; μ is the sampler."""
    scores = credit.group_center(x.rewards)

    def weight(i, t):
        policy, sampler = math.exp(x.log_probs[i][t]), math.exp(x.sampler_log_probs[i][t])
        away = policy > sampler if scores[i] > 0 else policy < sampler
        if away and divergence(sampler, policy) > eps:
            return 0.0
        return min(policy / sampler, max_ratio)

    def loss(now):
        return -mean_of_token_sums(x.mask, lambda i, t: weight(i, t) * scores[i] * now[i][t])

    return loss


def dppo_tv(x, eps=0.2, max_ratio=5.0):
    """Equation 13."""
    return dppo(x, lambda mu, pi: abs(mu - pi), eps, max_ratio)


def dppo_kl(x, eps=0.05, max_ratio=5.0):
    """Equation 14."""

    def divergence(mu, pi):
        return mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))

    return dppo(x, divergence, eps, max_ratio)


def covariances(x, scores):
    """Equation 10 of 2505.22617, over all tokens: (i, t) -> cov."""
    places = [(i, t) for i in completions(x.mask) for t in tokens(x.mask[i])]
    mean_score = sum(scores[i] for i, _ in places) / len(places)
    mean_log_prob = sum(x.log_probs[i][t] for i, t in places) / len(places)
    return {
        (i, t): (scores[i] - mean_score) * (x.log_probs[i][t] - mean_log_prob) for i, t in places
    }


def clip_cov(x, clip_share=2e-4, cov_low=1.0, cov_high=5.0, clip_eps=0.2, draws=None):
    """Equations 11 and 12. The smallest of `draws` [P, G, T] are the tokens chosen at random.

    As in the authors' code a token that is clipped anyway is no candidate, and one at least is
    taken.
    """
    scores = credit.group_normalize(x.rewards)
    draws = np.zeros(x.mask.shape) if draws is None else draws
    found = covariances(x, scores)
    candidates = []
    for (i, t), cov in found.items():
        r = ratio(x.log_probs, x, i, t).real
        if cov_low < cov < cov_high and not bounded(r, scores[i], clip_eps, clip_eps) < (
            r * scores[i]
        ):
            candidates.append((draws[i][t], i, t))
    number = max(math.floor(clip_share * len(found)), 1)
    left_out = {(i, t) for _, i, t in sorted(candidates)[:number]}

    def loss(now):
        def term(i, t):
            if (i, t) in left_out:
                return 0.0
            return bounded(ratio(now, x, i, t), scores[i], clip_eps, clip_eps)

        return -mean_over_tokens(x.mask, term)

    return loss


def kl_cov(x, kl_share=2e-4, coef=1.0):
    """Equations 13 and 14: no clip, and β |log ρ| on the tokens of highest covariance."""
    scores = credit.group_normalize(x.rewards)
    found = covariances(x, scores)
    number = max(math.floor(kl_share * len(found)), 1)
    held = set(sorted(found, key=found.get)[-number:])

    def loss(now):
        def term(i, t):
            drift = now[i][t] - x.old_log_probs[i][t]
            size = drift if drift.real > 0 else -drift
            return cmath.exp(drift) * scores[i] - (coef * size if (i, t) in held else 0.0)

        return -mean_over_tokens(x.mask, term)

    return loss


# -- no ratio ----------------------------------------------------------------------------------


def policy_gradient(x, advantage, reduce):
    """A log π."""

    def loss(now):
        return -reduce(x.mask, lambda i, t: advantage(i, t) * now[i][t])

    return loss


def gpg(x):
    """Equations 5 to 7."""
    scores = credit.gpg(x.rewards)
    return policy_gradient(x, lambda i, t: scores[i], mean_over_tokens)


def opo(x):
    scores = credit.opo(x.rewards, lengths(x))
    return policy_gradient(x, lambda i, t: scores[i], mean_of_token_sums)


def pkpo(x, k):
    """Equation 33: Σ_i s_i log π(o_i), which is the mean over i of n s_i log π(o_i)."""
    scores = credit.pass_at_k(x.rewards, k=k)
    return policy_gradient(x, lambda i, t: scores[i], mean_of_token_sums)


def remax(x, kl_coef=0.05):
    """The greedy reward is the baseline; penalties of a token and of all behind it."""
    scores = credit.greedy_baseline(x.rewards, x.greedy_rewards)
    scores = returns.kl_to_go(scores[..., None], x.mask, penalty(x, kl_coef))
    return policy_gradient(x, lambda i, t: scores[i][t], mean_of_token_sums)


def rloo(x, kl_coef=0.03):
    """The KL of the whole completion is in its reward, and so in the others' baseline."""
    rewards = returns.penalized(x.rewards, x.mask, penalty(x, kl_coef))
    scores = credit.leave_one_out(rewards)
    return policy_gradient(x, lambda i, t: scores[i], mean_of_token_sums)


def gvpo(x, coef=0.1):
    """1/(2 (n-1)) Σ_i ((R_i - mean R) - (r_i - mean r))², R_i = β log(π(o_i)/π_old(o_i)).

    Averaged over prompts; where completions are empty, a prompt weighs as the n that are not.
    """
    scores = credit.group_center(x.rewards)

    def loss(now):
        total = 0.0
        for p in range(len(x.mask)):
            rows = [i for i in completions(x.mask) if i[0] == p]
            implicit = [
                coef * sum(now[i][t] - x.old_log_probs[i][t] for t in tokens(x.mask[i]))
                for i in rows
            ]
            mean = sum(implicit) / len(rows)
            squares = [(r - mean - scores[i]) ** 2 for r, i in zip(implicit, rows, strict=True)]
            total += len(rows) * sum(squares) / (2 * (len(rows) - 1))
        return total / len(completions(x.mask))

    return loss
