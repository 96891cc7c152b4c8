"""The papers, one file each: a paper is a choice of one function from `ops` for each question."""

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.bnpo import bnpo
from grpo_jax.objectives.cispo import cispo
from grpo_jax.objectives.dapo import dapo
from grpo_jax.objectives.decoupled_ppo import decoupled_ppo
from grpo_jax.objectives.deepseek_r1 import deepseek_r1
from grpo_jax.objectives.deepseek_v3_2 import deepseek_v3_2
from grpo_jax.objectives.dppo import dppo_kl, dppo_tv
from grpo_jax.objectives.dr_grpo import dr_grpo
from grpo_jax.objectives.entropy_mechanism import clip_cov, kl_cov
from grpo_jax.objectives.gdpo import gdpo
from grpo_jax.objectives.gmpo import gmpo
from grpo_jax.objectives.gpg import gpg
from grpo_jax.objectives.grpo import grpo, grpo_process
from grpo_jax.objectives.gspo import gspo, gspo_token
from grpo_jax.objectives.gvpo import gvpo
from grpo_jax.objectives.icepop import icepop
from grpo_jax.objectives.lite_ppo import lite_ppo
from grpo_jax.objectives.luspo import luspo
from grpo_jax.objectives.max_rl import max_rl
from grpo_jax.objectives.opo import opo
from grpo_jax.objectives.otb import otb
from grpo_jax.objectives.pkpo import pkpo
from grpo_jax.objectives.ppo import ppo
from grpo_jax.objectives.prepare import prepare
from grpo_jax.objectives.reinforce_plus_plus import (
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)
from grpo_jax.objectives.remax import remax
from grpo_jax.objectives.rloo import rloo
from grpo_jax.objectives.sapo import sapo
from grpo_jax.objectives.skywork_or1 import skywork_or1
from grpo_jax.objectives.tis import tis
from grpo_jax.objectives.top_entropy import top_entropy
from grpo_jax.objectives.vespo import vespo

__all__ = [
    "Objective",
    "bnpo",
    "cispo",
    "clip_cov",
    "dapo",
    "decoupled_ppo",
    "deepseek_r1",
    "deepseek_v3_2",
    "dppo_kl",
    "dppo_tv",
    "dr_grpo",
    "gdpo",
    "gmpo",
    "gpg",
    "grpo",
    "grpo_process",
    "gspo",
    "gspo_token",
    "gvpo",
    "icepop",
    "kl_cov",
    "lite_ppo",
    "luspo",
    "max_rl",
    "opo",
    "otb",
    "pkpo",
    "ppo",
    "prepare",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rloo",
    "sapo",
    "skywork_or1",
    "tis",
    "top_entropy",
    "vespo",
]
