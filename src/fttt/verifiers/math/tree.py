"""What an answer is, as a tree: expressions, and what expressions stand in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from fttt.verifiers.math.symbols import word_set

__all__ = [
    "EXPRESSIONS",
    "Name",
    "Node",
    "constant",
    "names_of",
    "number",
    "renamed",
    "replaced",
    "walk",
]

Head = Literal[
    # expressions
    "number", "decimal", "const", "var", "index", "apply", "call", "add", "mul", "div", "neg",
    "pow", "root", "abs", "fact", "binom", "percent", "degree", "sum", "prod", "lim", "int",
    "dots", "pm", "mp",
    # what they stand in
    "list", "set", "tuple", "union", "inter", "minus", "matrix", "relation", "named", "member",
    "builder", "family", "ratio", "time", "quantity", "text", "choice", "based", "numbers", "mod",
]  # fmt: skip

EXPRESSIONS = word_set(
    "number decimal const var index apply call add mul div neg pow root abs fact binom "
    "percent degree sum prod lim int dots pm mp"
)
"""Heads of what has a value."""


@dataclass(frozen=True, slots=True)
class Node:
    """A head, its parts, and what tells two of that head apart (a name, a value, brackets)."""

    head: Head
    args: tuple[Node, ...] = ()
    data: Any = None


@dataclass(frozen=True, slots=True)
class Name:
    r"""What an answer calls its value: ``x``, ``f(x)``, ``\angle ABC``, ``\text{Area}``.

    ``kind`` is ``var``, ``function``, ``figure`` (points, angles, segments), ``words`` or
    ``tuple``; ``params`` are the variables of a function or the members of a tuple.
    """

    kind: Literal["var", "function", "figure", "words", "tuple"]
    text: str
    params: tuple[str, ...] = ()


def number(value: int | Fraction) -> Node:
    """A whole number or fraction."""
    return Node("number", data=Fraction(value))


def constant(name: Literal["pi", "e", "i", "infty"]) -> Node:
    """A number that has a name."""
    return Node("const", data=name)


def walk(node: Node) -> Iterator[Node]:
    """The node and everything in it, without recursion."""
    left = [node]
    while left:
        one = left.pop()
        yield one
        left += one.args


def names_of(node: Node) -> frozenset[str]:
    """The variables of an expression that are free, those of sums and limits excluded."""
    bound = {n.data for n in walk(node) if n.head in ("sum", "prod", "lim", "int")}
    return frozenset(n.data for n in walk(node) if n.head == "var") - bound


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The expression with other names for its variables."""
    if node.head == "var":
        return Node("var", data=names.get(node.data, node.data))
    if not node.args:
        return node
    return Node(node.head, tuple(renamed(arg, names) for arg in node.args), node.data)


def replaced(node: Node, name: str, by: Node) -> Node:
    """The expression with another one in place of a variable."""
    if node.head == "var" and node.data == name:
        return by
    if not node.args:
        return node
    return Node(node.head, tuple(replaced(arg, name, by) for arg in node.args), node.data)
