"""Makes `tests/fixtures/peers.npz`: what other libraries compute under the papers' names.

    pip install --no-deps trl verl openrlhf google-tunix && python scripts/make_peer_fixture.py

Run by hand, in an environment with as many of these as can be had and with what they import:
torch, transformers, accelerate, datasets, peft, ray, tensordict, hydra-core, flax, ... One that
is missing is skipped, with a line that says so. Each is asked through its own functions, on the
CPU, for advantages, loss and d loss / d log_probs of one small batch, all of it in one micro-batch.
NeMo-RL is on no package index: its formulas are written out from its source, and not run.

The file holds, for P = 3 prompts, G = 4 completions and T = 8 tokens, in float64:

    info                        JSON: "records", a list of R, each with library, version, name,
                                settings ("default": the library's own once the method is named;
                                "recipe": as the library's documents or scripts set it), values
                                (what was set) and run (false: written out, not run)
    mask, log_probs, ref_log_probs          [P, G, T]; padding holds ordinary numbers
    CASE/old_log_probs, CASE/rewards        [P, G, T], [P, G]
    CASE/loss                               [R]
    CASE/advantages, CASE/grad              [R, P, G, T]; advantages are 0 in the padding

Cases: "binary" and "real" rewards, with log-ratios of about 0.3; "stale", "binary" with three large
ratios, so that dual clips and caps act; "near", with log-ratios of 0.002, where GSPO's bounds act;
"first", the first update, with ratios of 1. The last group has equal rewards.
"""

import importlib.metadata
import json
import os
import pathlib
from typing import Any

import numpy as np
import peers
from peers import LENGTHS, MASK, G, P, T

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PEERS = {
    "trl": peers.trl,
    "verl": peers.verl,
    "openrlhf": peers.openrlhf,
    "google-tunix": peers.tunix,
}
NEMO_RL = "main at 006907a"
KINDS = ("advantages", "loss", "grad")

# library -> (name, settings, values). Values are spelt as the library spells them (nested ones
# flattened; NeMo-RL's by what they do). Recipes follow TRL's paper index and the help of its
# settings, verl's docs/algo and examples, OpenRLHF's examples/scripts, and NeMo-RL's
# examples/configs/recipes.
TRL_GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo"}
VERL_GSPO = {"loss_mode": "gspo", "loss_agg_mode": "seq-mean-token-mean"}
VERL_DR_GRPO = {"norm_adv_by_std_in_grpo": False, "loss_agg_mode": "seq-mean-token-sum-norm"}
GROUP_NORM = {"estimator": "group_norm"}
KL_LOSS = {"kl_use_loss": True, "kl_init_coef": 1e-3, "kl_estimator": "k3"}
RECORDS = {
    "trl": [
        ("grpo", "default", {}),
        ("grpo", "recipe", {"loss_type": "grpo", "beta": 0.001, "epsilon": 10.0}),
        ("dr_grpo", "default", {"loss_type": "dr_grpo"}),
        ("dr_grpo", "recipe", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("dapo", "recipe", {"epsilon_high": 0.28, "mask_truncated_completions": True}),
        ("gspo", "default", {"importance_sampling_level": "sequence"}),
        ("gspo", "recipe", TRL_GSPO | {"epsilon": 3e-4, "epsilon_high": 4e-4}),
        ("cispo", "default", {"loss_type": "cispo"}),
        ("cispo", "recipe", {"loss_type": "cispo", "epsilon_high": 5.0}),
        ("rloo", "default", {}),
    ],
    "verl": [
        ("grpo", "default", {}),
        ("grpo", "recipe", {"use_kl_loss": True}),
        ("dr_grpo", "recipe", VERL_DR_GRPO),
        ("dapo", "recipe", {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0}),
        ("gspo", "default", {"loss_mode": "gspo"}),
        ("gspo", "recipe", VERL_GSPO | {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
        ("cispo", "default", {"loss_mode": "cispo"}),
        ("cispo", "recipe", {"loss_mode": "cispo", "clip_ratio_low": 10.0, "use_kl_loss": True}),
        ("rloo", "default", {"adv_estimator": "rloo"}),
        ("rloo", "recipe", {"adv_estimator": "rloo", "kl_in_reward_coef": 0.001}),
    ],
    "openrlhf": [
        ("grpo", "default", GROUP_NORM),
        ("grpo", "recipe", GROUP_NORM | KL_LOSS),
        ("dr_grpo", "default", {"estimator": "dr_grpo"}),
        ("dapo", "recipe", GROUP_NORM | KL_LOSS | {"eps_clip_high": 0.27}),
        ("gspo", "default", GROUP_NORM | {"policy_loss_type": "gspo"}),
        ("gspo", "recipe", GROUP_NORM | {"policy_loss_type": "gspo", "kl_init_coef": 0.0}),
        ("rloo", "default", {"estimator": "rloo"}),
    ],
    "google-tunix": [
        ("grpo", "default", {}),
        ("dr_grpo", "default", {}),
        ("dapo", "default", {}),
        ("gspo", "default", {"loss_algo": "gspo-token"}),
        ("rloo", "default", {"advantage_estimator": "rloo"}),
    ],
    "nemo-rl": [
        ("grpo", "default", {}),
        ("dapo", "recipe", {"leave_one_out": False, "high": 0.28, "dual": 10.0, "kl_coef": 0.0}),
        ("gspo", "recipe", {"sequence": True, "token_level": False, "kl_coef": 0.0}),
        ("cispo", "recipe", {"cispo": True, "low": 1.0, "high": 0.8, "kl_coef": 0.0}),
        ("rloo", "recipe", {"use_ratio": False, "normalize": False}),
    ],
}


def make_cases() -> tuple[dict, dict[str, dict]]:
    """The arrays that all cases share, and those of each; checks that every clip acts."""
    rng = np.random.default_rng(0)
    shared = {"mask": MASK, "log_probs": rng.uniform(-4.0, -0.5, (P, G, T))}
    shared["ref_log_probs"] = shared["log_probs"] + rng.normal(0.0, 0.5, (P, G, T))
    far, near = rng.normal(0.0, 0.3, (P, G, T)), rng.normal(0.0, 2e-3, (P, G, T))
    far[0, 0, 5] = np.log(1.24)  # between the upper bounds of GRPO and DAPO, A > 0
    stale = far.copy()
    # Ratios beyond 3 and 10 with A < 0 (dual clip) and beyond 5 with A > 0 (CISPO's bound).
    stale[0, 1, [2, 4]], stale[0, 0, 3] = (1.3, 2.5), 1.8
    binary = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    real = binary + rng.normal(0.0, 0.3, (P, G))
    real[2] = 0.5
    cases = {}
    for name, log_ratio, rewards in (
        ("binary", far, binary),
        ("real", far, real),
        ("stale", stale, binary),
        ("near", near, binary),
        ("first", np.zeros((P, G, T)), binary),
    ):
        old = shared["log_probs"] - log_ratio
        cases[name] = {"old_log_probs": old, "rewards": rewards}
        centred = (rewards - rewards.mean(axis=1, keepdims=True))[..., None]
        positive, negative = MASK & (centred > 0), MASK & (centred < 0)
        assert not centred[2].any()
        if log_ratio is far:
            ratio = np.exp(far)
            for sign in (positive, negative):
                assert (sign & (ratio > 1.2)).any(), name
                assert (sign & (ratio < 0.8)).any(), name
            assert (positive & (ratio > 1.2) & (ratio < 1.28)).any(), name
        if log_ratio is near:
            mean = (near * MASK).sum(axis=-1) / LENGTHS
            for sign in (centred[..., 0] > 0, centred[..., 0] < 0):
                assert (sign & (mean > 4e-4)).any(), mean
                assert (sign & (mean < -3e-4)).any(), mean
    return shared, cases


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    shared, cases = make_cases()
    records: list[dict] = []
    results: dict[str, list] = {f"{case}/{k}": [] for case in cases for k in KINDS}
    for library, entries in RECORDS.items():
        version, peer = NEMO_RL, peers.nemo_rl
        try:
            if library in PEERS:
                version, peer = importlib.metadata.version(library), PEERS[library]
            computes = [peer(name, values) for name, _, values in entries]
        except ImportError as error:
            print(f"{library} is skipped: {error}")
            continue
        for (name, settings, values), compute in zip(entries, computes, strict=True):
            for case, arrays in cases.items():
                advantages, loss, grad = map(np.asarray, compute(shared | arrays))
                advantages = advantages.reshape(P, G, -1) * MASK
                grad = grad.reshape(P, G, T)
                assert np.isfinite(grad).all(), (library, name)
                assert not grad[~MASK].any(), (library, name)
                for kind, value in zip(KINDS, (advantages, loss, grad), strict=True):
                    results[f"{case}/{kind}"].append(value.astype(np.float64))
            record = {"library": library, "version": version, "name": name, "settings": settings}
            records.append(record | {"values": values, "run": library in PEERS})
            print(*record.values())
    info = json.dumps({"made_by": "scripts/make_peer_fixture.py", "records": records})
    inputs = {f"{case}/{k}": array for case, arrays in cases.items() for k, array in arrays.items()}
    stacked: dict[str, Any] = {key: np.stack(value) for key, value in results.items()}
    path = FIXTURES / "peers.npz"
    np.savez_compressed(path, info=np.array(info), **shared, **inputs, **stacked)
    print(f"{len(records)} records, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
