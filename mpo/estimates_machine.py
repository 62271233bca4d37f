"""What trainings run on, as far as estimates depend on it. Torch-free."""

from dataclasses import dataclass

from mpo.estimates_passes import Device
from mpo.spreading import can_shard, is_spread
from mpo.training_config import StageConfig


@dataclass(frozen=True)
class Machine:
    """Where trainings run. ranks: processes that train together, each on a device of its own unless that is a
    CPU; sharded: whether each holds a part of the weights that it trains (`core/settings.py`)."""

    device: Device = "cpu"
    ranks: int = 1
    sharded: bool = False

    def ranks_of(self, config: StageConfig) -> int:
        """Processes that run a stage."""
        return self.ranks if is_spread(config) else 1

    def is_sharding(self, config: StageConfig) -> bool:
        """Whether a stage's weights in training lie in shards."""
        return self.sharded and self.ranks > 1 and can_shard(config)


ONE_CPU = Machine()
