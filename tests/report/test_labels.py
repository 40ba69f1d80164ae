"""Names of sides tell them apart and stay short."""

from __future__ import annotations

import pytest

from fttt.report.labels import name_sides, shorten_paths


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (
            ["/long/way/optune-real", "/long/way/optune-shuffled"],
            ["optune-real", "optune-shuffled"],
        ),
        (["/a/real/step-00000100", "/a/plain/step-00000100"], ["real", "plain"]),
        (["out/real", "out/real/step-00000100"], ["real", "real/step-00000100"]),
        (["a", "/b/c"], ["a", "/b/c"]),
        (["a/b/a", "a/a"], ["b/a", "a"]),
        (["a/b"], ["b"]),
    ],
)
def test_paths_keep_only_what_differs(paths: list[str], short: list[str]) -> None:
    assert list(shorten_paths(paths).values()) == short


def test_sides_of_two_checkpoints_are_named_by_what_differs_in_their_paths() -> None:
    folder = "/dev/shm/somewhere/very/deep/indeed/checkpoints"
    settings = [{"checkpoint": f"{folder}/{name}", "rank": 4} for name in ("real", "shuffled")]
    names = name_sides(["optune", "optune"], settings)
    assert names == ["optune (real)", "optune (shuffled)"]


def test_a_switch_is_named_by_itself() -> None:
    settings = [{"reflection": True, "rank": 4}, {"reflection": False, "rank": 8}]
    names = name_sides(["fttt", "fttt"], settings)
    assert names == ["fttt (reflection, rank 4)", "fttt (no reflection, rank 8)"]


def test_a_long_folder_name_keeps_its_end() -> None:
    settings = [{"adapter": "x" * 50 + end} for end in ("first", "second")]
    first, second = name_sides(["fttt", "fttt"], settings)
    assert first == "fttt (…" + "x" * 34 + "first)"
    assert second == "fttt (…" + "x" * 33 + "second)"


def test_what_cannot_be_told_apart_has_no_name() -> None:
    settings = [{"feedback": "x" * 50 + end} for end in ("first", "second")]
    assert name_sides(["fttt", "fttt"], settings) == [None, None]
    assert name_sides(["fttt", "fttt", "greedy"], [{}, {"adapter": "a"}, {}]) == [
        None, "fttt (adapter a)", "greedy",
    ]  # fmt: skip
