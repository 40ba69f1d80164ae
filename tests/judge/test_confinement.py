from __future__ import annotations

from fttt.judge.confinement import LAYERS, LayerReport


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
