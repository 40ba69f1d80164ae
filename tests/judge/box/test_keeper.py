"""What a box is granted, without boxes."""

from __future__ import annotations

import pytest

from fttt.judge.box import keeper
from fttt.judge.box.keeper import Keeper
from fttt.judge.box.usage import slowness


@pytest.mark.parametrize(
    ("looks", "granted"), [([0.5], 5.0), ([1.0], 5.0), ([2.5, 1.0], 12.5), ([1.0, 2.0], 5.0),
                           ([20.0], 15.0)],
)  # fmt: skip
def test_a_box_has_more_processor_time_while_the_machine_is_slow(
    looks: list[float], granted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = object.__new__(Keeper)
    own._limits = {"cpu_seconds": 5, "slowest": 3.0}
    box = keeper._Box(number=1, pid=1, begin=0.0)
    monkeypatch.setattr(keeper, "slowness", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    ended, now = 0.0, 100.0
    while not ended:
        box.cpu, now = box.cpu + 0.5, now + 1.5  # so that the machine is looked at each time
        ended = box.cpu if own._spent(box, now) else 0.0
    assert granted < ended <= granted + 0.5


def test_the_machine_is_looked_at_once_a_second_and_only_beyond_what_is_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = object.__new__(Keeper)
    own._limits = {"cpu_seconds": 5, "slowest": 3.0}
    looked: list[float] = []
    monkeypatch.setattr(keeper, "slowness", lambda: looked.append(0.0) or 2.0)
    box = keeper._Box(number=1, pid=1, begin=0.0, cpu=4.9)
    assert not own._spent(box, 100.0)
    assert not looked
    box.cpu = 6.0
    assert not any(own._spent(box, 100.0 + n / 50) for n in range(50))
    assert len(looked) == 1
    assert 0.05 < slowness() < 50  # of any machine that runs this
