"""What a stage file sees: `Stage`, which it declares, the bases of its recipe keys, and the `Job` that it trains.

Nothing here imports torch before `Job` is asked for.
"""

from typing import TYPE_CHECKING, Any

from align.run_folder.records import Ticket
from align.stage.declaration import Stage
from align.stage.keys import Setting, StageKeys
from align.stage.replay_keys import Replay
from align.stage.replaying import ReplayingKeys
from align.stage.rewarded import RewardedKeys

if TYPE_CHECKING:
    from align.stage.job import Job

__all__ = ["Job", "Replay", "ReplayingKeys", "RewardedKeys", "Setting", "Stage", "StageKeys", "Ticket"]


def __getattr__(name: str) -> Any:
    if name == "Job":
        from align.stage.job import Job

        return Job
    raise AttributeError(f"module 'align.stage' has no attribute '{name}'")
