"""The garbage collector while questions are asked."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["old_objects_left_alone"]

_COLLECT = 20_000
"""Objects that a run makes between two looks of the garbage collector (700 by default)."""
_BORN = gc.get_freeze_count()
"""Objects that Python itself has frozen: some hundreds in 3.12."""
_TURN = Lock()


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Spare the garbage collector what was there before, and let it look at the new seldom.

    A look at modules, model and engine takes a third of a second, and comes as soon as a run has
    made a quarter as many objects. Of what a run makes next to nothing lies in circles.
    """
    with _TURN:  # several threads may ask questions
        ours = gc.get_freeze_count() <= _BORN  # else somebody has, and will undo it
        threshold = gc.get_threshold()
        if ours:
            gc.freeze()
            gc.set_threshold(_COLLECT, *threshold[1:])
    try:
        yield
    finally:
        if ours:
            gc.set_threshold(*threshold)
            gc.unfreeze()
