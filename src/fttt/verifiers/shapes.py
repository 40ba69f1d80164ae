r"""The outer shape of an answer: a list, a tuple or interval, a union, a matrix, or one expression.

Taking shapes apart before anything symbolic keeps the rules plain: a list or set compares in any
order, a tuple in its own, an interval also by its brackets, a matrix cell by cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Shape", "shape_of"]

Kind = Literal["one", "list", "tuple", "union", "matrix"]

_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_MEMBER = re.compile(
    r"[A-Za-z]\s*\\in(?![A-Za-z])\s*|\([A-Za-z](?:\s*,\s*[A-Za-z])+\)\s*=\s*(?=\()"
)
"""What may stand before an answer: ``x \\in`` or ``(x, y) =``."""
_BELOW = r"(?:<|\\le(?![A-Za-z]))"
_ABOVE = r"(?:>|\\ge(?![A-Za-z]))"
_BETWEEN = re.compile(rf"(.+?)({_BELOW})\s*[A-Za-z]\s*({_BELOW})(.+)")
_ONE_SIDED = re.compile(rf"[A-Za-z]\s*({_BELOW}|{_ABOVE})(.+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind, its parts, and what tells two of that kind apart (brackets, number of columns)."""

    kind: Kind
    parts: tuple[Shape, ...] = ()
    text: str = ""
    """The expression of a ``one``; brackets of a ``tuple``; number of columns of a ``matrix``."""


def shape_of(text: str) -> Shape:
    """The shape of a tidy answer."""
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text.strip()
    matrix = _MATRIX.fullmatch(text)
    if matrix and r"\begin" not in matrix[2]:
        return _matrix(matrix[2])
    united = _split(text, r"\cup")
    if len(united) > 1:
        return Shape("union", tuple(shape_of(part) for part in united))
    parts = _split(text, ",")
    if len(parts) == 1:
        parts = _split(text, ";")
    if len(parts) > 1:
        return Shape("list", tuple(one for part in parts for one in _elements(part)))
    inside = _inside(text)
    if inside is not None:
        return inside
    interval = _interval(text)
    if interval is not None:
        return interval
    both = _signs(text)
    return Shape("list", both) if both else Shape("one", text=text)


def _inside(text: str) -> Shape | None:
    """A set in braces or a tuple in brackets."""
    if text.startswith(r"\{") and text.endswith(r"\}") and _balanced(text[2:-2]):
        elements = shape_of(text[2:-2])
        return elements if elements.kind == "list" else Shape("list", (elements,))
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not _balanced(text[1:-1]):
        return None
    parts = _split(text[1:-1], ",")
    if len(parts) < 2:
        inner = _split(text[1:-1], r"\cup")
        return shape_of(text[1:-1]) if len(inner) > 1 else None
    return Shape("tuple", tuple(shape_of(part) for part in parts), text[0] + text[-1])


def _matrix(body: str) -> Shape:
    rows = [row for row in re.split(r"\\\\|\\cr(?![A-Za-z])", body) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    parts = tuple(shape_of(cell) for row in cells for cell in row)
    return Shape("matrix", parts, str(columns))


def _interval(text: str) -> Shape | None:
    """An inequality in one variable as the interval that it means."""
    between = _BETWEEN.fullmatch(text)
    if between:
        low, left, right, high = between.groups()
        if not re.search(rf"{_BELOW}|{_ABOVE}", low + high):
            brackets = ("(" if left == "<" else "[") + (")" if right == "<" else "]")
            return Shape("tuple", (shape_of(low), shape_of(high)), brackets)
    sided = _ONE_SIDED.fullmatch(text)
    if sided and not re.search(rf"{_BELOW}|{_ABOVE}", sided[2]):
        sign, bound = sided[1], shape_of(sided[2])
        if sign[0] == "<" or sign.startswith(r"\le"):
            low_end = Shape("one", text=r"-\infty")
            return Shape("tuple", (low_end, bound), "(" + (")" if sign == "<" else "]"))
        high_end = Shape("one", text=r"\infty")
        return Shape("tuple", (bound, high_end), ("(" if sign == ">" else "[") + ")")
    return None


def _elements(part: str) -> tuple[Shape, ...]:
    r"""What one entry of a list adds to it: an expression with ``\pm`` adds two."""
    return _signs(part) or (shape_of(part),)


def _signs(text: str) -> tuple[Shape, ...]:
    r"""Both values of an expression with ``\pm``; empty where it has none."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return ()
    return tuple(
        Shape("one", text=_strip_plus(_sign(_sign(text, "pm", upper), "mp", lower)))
        for upper, lower in (("+", "-"), ("-", "+"))
    )


def _sign(text: str, command: str, sign: str) -> str:
    return re.sub(rf"\s*\\{command}(?![A-Za-z])\s*", f" {sign} ", text)


def _strip_plus(text: str) -> str:
    text = re.sub(r"(^|=)\s*\+\s*", r"\1", text.strip())
    return re.sub(r"(^|=)\s*-\s+", r"\1-", text)


def _split(text: str, separator: str) -> list[str]:
    """Parts of ``text`` between separators that stand outside all brackets; none is empty."""
    parts, start = [], 0
    for place, depth in _depths(text):
        if depth == 0 and text.startswith(separator, place):
            parts.append(text[start:place].strip())
            start = place + len(separator)
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [text]


def _balanced(text: str) -> bool:
    """Whether no bracket of ``text`` closes one that it did not open."""
    return all(depth >= 0 for _, depth in _depths(text))


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """Every place of ``text`` with the number of brackets that are open there.

    Round and square brackets may close each other: ``(0, 1]`` is an interval.
    """
    depth, place = 0, 0
    while place < len(text):
        character = text[place]
        step = 2 if character == "\\" and text[place + 1 : place + 2] in ("{", "}") else 1
        character = text[place + step - 1]
        if text.startswith(r"\begin", place):
            depth += 1
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        yield place, depth
        if text.startswith(r"\end", place):
            depth -= 1
        place += step
