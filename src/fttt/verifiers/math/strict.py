"""The string rule of the MATH benchmark, for comparison with published figures.

Written from its description (Hendrycks et al. 2021): two answers are equal where their LaTeX is
the same string after spaces, delimiters, units on the right, percent and degree signs and the
different ways to write a fraction or root have been levelled. It calls ``0.25`` and ``\\frac14``
different; use it only where a figure was published with it.
"""

from __future__ import annotations

import re

__all__ = ["same_string", "strict_form"]

_DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")
_FRACTION = re.compile(r"\\frac(?:([^\s{])([^\s{])|([^\s{])(?=\{))")
_ROOT = re.compile(r"\\sqrt([^\s{\[])")
_SLASH = re.compile(r"(-?\d+)/(-?\d+)")


def strict_form(answer: str) -> str:
    """The string that stands for ``answer``."""
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = text.split("\\text{ ")[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right  # "k = 5", where the name has at most two characters
    text = _ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    text = _FRACTION.sub(_braces, text)
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = _SLASH.fullmatch(text)
    return f"\\frac{{{int(slash[1])}}}{{{int(slash[2])}}}" if slash else text


def _braces(match: re.Match[str]) -> str:
    top, bottom, lone = match.groups()
    if top:
        return f"\\frac{{{top}}}{{{bottom}}}"
    return f"\\frac{{{lone}}}"


def same_string(gold: str, answer: str) -> bool:
    """Whether the benchmark's rule calls both the same."""
    return strict_form(gold) == strict_form(answer)
