"""OpTune: a network that predicts, from one failed attempt, how to change the weights.

``load_checkpoint`` loads a trained one from a folder or the hub, ``push`` and ``pull`` share it.
Importing this loads no torch.
"""

from fttt.optune.checkpoint import (
    OpTuneCheckpoint,
    OpTuneInfo,
    load_checkpoint,
    pull,
    push,
    read_info,
)

__all__ = [
    "OpTuneCheckpoint",
    "OpTuneInfo",
    "load_checkpoint",
    "pull",
    "push",
    "read_info",
]
