"""Colours that colour-blind readers can tell apart, on light and on dark ground.

The sides' colours are those of Okabe and Ito (2008), darkened where they would be faint on white.
Lines also differ in their markers, so that nothing hangs on colour alone. Plots are drawn in the
light colours; in the page each of these becomes a CSS variable of the same name.
"""

from __future__ import annotations

__all__ = ["ARM_COLOURS", "DARK", "LIGHT", "css_variables"]

LIGHT = {
    "ink": "#1b2026",
    "soft": "#5a6572",
    "line": "#d9dee4",
    "ground": "#ffffff",
    "raised": "#f5f7f9",
    "accent": "#0b62a8",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#008f68",
    "c3": "#b5508f",
    "c4": "#a87400",
    "c5": "#3a97cf",
    "c6": "#5b4aa0",
    "c7": "#4d4f53",
    "correct": "#0076b8",
    "wrong": "#e08a3c",
    "blank": "#a9b1ba",
    "other": "#7d68b8",
}
DARK = {
    "ink": "#e8ebef",
    "soft": "#9aa5b1",
    "line": "#333b45",
    "ground": "#14181d",
    "raised": "#1c2229",
    "accent": "#6cb6f5",
    "c0": "#56a9e8",
    "c1": "#ff8a4a",
    "c2": "#2fcaa0",
    "c3": "#e693c4",
    "c4": "#e8b84a",
    "c5": "#9fd8fb",
    "c6": "#a997f0",
    "c7": "#c9ccd1",
    "correct": "#4fb0ef",
    "wrong": "#d98e4a",
    "blank": "#69737f",
    "other": "#a08cdc",
}
ARM_COLOURS = tuple(f"c{n}" for n in range(8))


def css_variables(palette: dict[str, str]) -> str:
    """``--ink: #1b2026; ...`` for a style sheet."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())
