"""Draw the way of a question through `fttt run fttt`: which modules it passes, and who calls whom.

    python dev/way_of_a_question.py                                  # this tree
    PYTHONPATH=OLD/src python dev/way_of_a_question.py --out old.png # another one, unpacked at OLD

One question is asked twice with the embedded model in a process of its own, with every call between
modules watched. A module's place is its layer and when it was first called; blue lines go to a
lower layer, grey ones stay in one, red ones go up.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from matplotlib.figure import Figure

LAYERS = (("methods",), ("experiment",), ("verifiers", "store"), ("engine",), ("models",))
COLOURS = {1: "#0b62a8", 0: "#b9c0c8", -1: "#c23b22"}


def traced(arguments: list[str]) -> list[tuple[str, str, str]]:
    """Caller, called module and function of each call between modules of a command."""
    import fttt

    root = str(Path(fttt.__file__).parent)
    names: dict[str, str] = {}
    calls: list[tuple[str, str, str]] = []

    def module(frame: FrameType | None) -> str:
        while frame is not None:
            path = frame.f_code.co_filename
            if path not in names:
                own = path.startswith(root)
                names[path] = path[len(root) + 1 : -3].removesuffix("/__init__") if own else ""
            if names[path]:
                return names[path]
            frame = frame.f_back
        return ""

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            calls.append((module(frame.f_back), module(frame), frame.f_code.co_name))

    sys.argv = ["fttt", *arguments]
    sys.setprofile(watch)
    try:
        runpy.run_module("fttt", run_name="__main__")
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    return calls


def layer(module: str) -> int:
    """Its number from the top, -1 for what all layers use."""
    own = module.split("/")[0]
    return next((n for n, packages in enumerate(LAYERS) if own in packages), -1)


def draw(calls: list[tuple[str, str, str]]) -> Figure:
    """Modules by layer and first call, from the method's ``solve`` to its last line."""
    inside = [n for n, (_, called, _) in enumerate(calls) if called.startswith("methods/")]
    begins = next(n for n in inside if calls[n][2] == "solve")
    edges = dict.fromkeys(
        (caller, called)
        for caller, called, _ in calls[begins : inside[-1]]
        if caller != called and min(layer(caller), layer(called)) >= 0
    )
    order = list(dict.fromkeys(module for edge in edges for module in edge))
    place: dict[str, tuple[float, float]] = {}
    for number, packages in enumerate(LAYERS):
        own = [module for module in order if module.split("/")[0] in packages]
        for n, module in enumerate(own):
            wave = 0.28 * (n % 3 - 1) if len(own) > 6 else 0.0
            place[module] = (n + 0.5) / len(own), -number + wave
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.add_subplot()
    for caller, called in edges:
        step = layer(called) - layer(caller)
        axes.annotate(
            "", xy=place[called], xytext=place[caller],
            arrowprops={
                "arrowstyle": "->", "shrinkA": 9, "shrinkB": 9, "linewidth": 0.9, "alpha": 0.8,
                "color": COLOURS[(step > 0) - (step < 0)], "connectionstyle": "arc3,rad=0.12",
            },
        )  # fmt: skip
    for module, (x, y) in place.items():
        axes.text(
            x, y, module.partition("/")[2], ha="center", va="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#5a6572"},
        )  # fmt: skip
    ups = sum(layer(called) < layer(caller) for caller, called in edges)
    axes.set_title(
        f"{len(place)} modules, {len(edges)} kinds of calls between them, {ups} of them upwards",
        fontsize=10,
    )
    axes.set_yticks([-n for n in range(len(LAYERS))], [", ".join(names) for names in LAYERS])
    axes.set_xticks([])
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(LAYERS) + 0.5, 0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("dev/way-of-a-question.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls = traced(
            "run fttt --model smollm2-135m --task arithmetic --limit 1 --trials 2 "
            f"--max-new-tokens 8 --skip-cases none --out {folder}/run".split()
        )
    draw(calls).savefig(options.out, dpi=130)
    print(options.out)


if __name__ == "__main__":
    main()
