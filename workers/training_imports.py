"""What a gpu slot's fork server imports once: seconds that no run then pays. Nothing here touches CUDA."""

import torch
import transformers
import trl

import mpo.dpo.train
import mpo.evaluation
import mpo.leading
import mpo.ppo.train
import mpo.reward_model.score
import mpo.reward_model.train
import mpo.sft.train
import workers.child_main

__all__ = ["mpo", "torch", "transformers", "trl", "workers"]
