from __future__ import annotations

import struct

import pytest

from fttt.judge import confinement
from fttt.judge.confinement import LAYERS, LayerReport, Limits, compile_filter, slowness
from fttt.judge.sandbox import Sandbox


def test_a_layer_that_was_not_tried_does_not_hold() -> None:
    report = LayerReport({layer.name: "" for layer in LAYERS if layer.name != "pid"})
    assert [layer.name for layer in report.missing] == ["pid"]
    assert any(line.startswith("pid: MISSING (not tried)") for line in report.lines())
    assert report.to_json()["user"] == "holds"


def test_the_minimum_does_without_what_only_doubles_another_layer() -> None:
    report = LayerReport({layer.name: "" for layer in LAYERS if layer.needed})
    assert report.missing == ()
    assert not report.holds("landlock")
    lines = "\n".join(report.lines())
    assert "it would stop writing outside the scratch folder" in lines


@pytest.mark.parametrize("counted", [True, False])
def test_the_filter_is_a_program_that_refuses_by_default(counted: bool) -> None:
    program = compile_filter(counted=counted)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096, "the kernel's limit"
    returns = {
        struct.unpack("=HBBI", program[at : at + 8])[3]
        for at in range(0, len(program), 8)
        if struct.unpack("=HBBI", program[at : at + 8])[0] == 0x06
    }
    allow, errno_eperm, errno_enosys = 0x7FFF0000, 0x00050001, 0x00050026
    assert {allow, errno_eperm, errno_enosys} <= returns


@pytest.mark.parametrize(("times", "seconds"), [(0.5, 5), (1.0, 5), (2.5, 13), (20.0, 15)])
def test_a_slow_machine_grants_more_processor_time_but_within_the_wall_time(
    times: float, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "slowness", lambda: times)
    assert Limits.here() == Limits(cpu_seconds=seconds)
    assert Sandbox().limits.cpu_seconds == seconds < Limits().wall_seconds
    assert Sandbox(limits=Limits(cpu_seconds=2)).limits.cpu_seconds == 2


def test_slowness_is_looked_at_once_and_takes_the_least_of_its_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter([0.03, 0.01, 0.02, 0.04, 0.05, 0.06, 0.07])
    monkeypatch.setattr(confinement, "_some_work", lambda: next(taken))
    slowness.cache_clear()
    assert slowness() == slowness() == 0.01 / confinement.WORK_SECONDS
    slowness.cache_clear()
    monkeypatch.undo()
    assert 0.05 < slowness() < 50  # of any machine that runs this
