"""Every sample is drawn and judged."""

from __future__ import annotations

from fttt.methods.base import MethodSettings
from fttt.methods.sample import Sample
from fttt.store import solved_within
from fttt.testing import play


def test_a_right_answer_stops_none_of_the_others() -> None:
    scene = play(Sample(MethodSettings()), ["3", "7", "none", "7"], trials=4)
    verdicts = [trial.verdict for trial in scene.trials]
    assert verdicts == ["incorrect", "correct", "unanswered", "correct"]
    at = [solved_within(scene.trials, k) for k in (1, 2, 4)]
    assert at == [False, True, True]
