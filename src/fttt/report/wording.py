"""How numbers are written, the same in every table, sentence and plot."""

from __future__ import annotations

from fttt.report.statistics import Estimate

__all__ = ["count", "interval", "p_value", "percent", "points", "quantity", "seconds"]

MINUS = "\N{MINUS SIGN}"


def percent(fraction: float) -> str:
    """``12.5 %`` from 0.125."""
    return f"{100 * fraction:.1f} %"


def interval(estimate: Estimate) -> str:
    """``10.1 to 14.8 %``, the bounds of an interval."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def points(fraction: float, sign: bool = True) -> str:
    """``+1.5`` or ``−0.4``: percentage points, with a true minus sign."""
    text = f"{100 * fraction:+.1f}" if sign else f"{100 * fraction:.1f}"
    if float(text) == 0:
        return "0.0"
    return text.replace("-", MINUS)


def p_value(p: float) -> str:
    """``p = 0.034``, or ``p < 0.001``."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: float) -> str:
    """``1,319``: a whole number with separators."""
    return f"{round(number):,}"


def quantity(number: float) -> str:
    """``4.2``, ``3``, ``5,400``: one decimal below ten, where it is not a whole number."""
    if abs(number) < 10 and number != round(number):
        return f"{number:.1f}"
    return count(number)


def seconds(number: float) -> str:
    """``0.42 s``, ``12 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if number < 10:
        return f"{number:.2f} s" if number < 1 else f"{number:.1f} s"
    whole = round(number)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
