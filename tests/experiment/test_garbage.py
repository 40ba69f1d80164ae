"""The garbage collector while questions are asked, in a process that nobody has prepared."""

from __future__ import annotations

import gc
import subprocess
import sys

from fttt.experiment.garbage import old_objects_left_alone

SCRIPT = """
import gc
from fttt.experiment.garbage import old_objects_left_alone

for _ in range(2):
    old, before = len(gc.get_objects()), gc.get_threshold()
    with old_objects_left_alone():
        assert gc.get_freeze_count() >= old
        assert gc.get_threshold()[0] > before[0]
        inner = gc.get_threshold()
        with old_objects_left_alone():
            pass
        assert gc.get_freeze_count() >= old
        assert gc.get_threshold() == inner
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
"""


def test_what_was_there_before_is_passed_over_until_the_end() -> None:
    """Also by a Python that has frozen objects of its own, as 3.12 has."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_objects_that_somebody_else_has_frozen_stay_so() -> None:
    gc.freeze()
    frozen, before = gc.get_freeze_count(), gc.get_threshold()
    with old_objects_left_alone():
        assert gc.get_threshold() == before
    assert gc.get_freeze_count() > frozen // 2  # some of them may have ended meanwhile
