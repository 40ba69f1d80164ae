from __future__ import annotations

import struct

import pytest

from fttt.judge.confinement import LAYERS, LayerReport, compile_filter


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
