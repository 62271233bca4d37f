"""Which stages run on several ranks, and which of them can keep their weights in shards. Torch-free."""

from mpo.config import DPOStage, PPOStage, RewardModelStage, SFTStage
from mpo.training_config import StageConfig


def is_spread(config: StageConfig) -> bool:
    """Whether a stage can run on several ranks: trainings by our own engine. All else runs on one."""
    if isinstance(config, RewardModelStage | DPOStage):
        return config.engine == "native"
    return isinstance(config, SFTStage | PPOStage)


def can_shard(config: StageConfig) -> bool:
    """Whether its weights in training can lie in shards: of what is spread, all but adapters and PPO."""
    whole = isinstance(config, SFTStage | RewardModelStage | DPOStage) and config.lora is None
    return whole and is_spread(config)
