"""OpTune: a network that predicts, from one failed attempt, how to change the weights.

``load_checkpoint`` loads a trained network from a folder or the hub; ``push`` and ``pull`` share
one.
Importing this package loads no torch.
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
