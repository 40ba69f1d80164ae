r"""What a tree means, in one form: both signs as two values, a name once, sets by their elements.

``x = 2 \text{ or } 3`` becomes a name with two values, ``\pm 2`` a list of two, ``2 + 3 = 5`` the
value 5, ``\{x \mid x = 1\}`` the set of 1.
"""

from __future__ import annotations

import re
from fractions import Fraction

from fttt.verifiers.math.notation import NotUnderstoodError
from fttt.verifiers.math.quantities import same_quantity
from fttt.verifiers.math.sets import is_set_like
from fttt.verifiers.math.tree import EXPRESSIONS, Name, Node, names_of, walk
from fttt.verifiers.math.values import UndecidedError, UndefinedError, evaluate, is_about

__all__ = ["settled"]

_EMPTY = frozenset({"no solution", "no solutions", "empty set", "no real solutions"})


def settled(node: Node) -> Node:
    """The node without what says nothing: both signs as two values, a list of one, a name twice."""
    if node.head in EXPRESSIONS:
        point = node.head == "apply" and node.data.isupper() and len(node.args) > 1
        if point and not names_of(node):  # the point "A(1, 2)"
            return Node("tuple", node.args, "()")
        both = _both_signs(node)
        return Node("list", both, ",") if len(both) > 1 else node
    if node.head == "quantity":
        if node.data.unit is None and not node.data.things:
            return settled(node.args[0])
        both = _both_signs(node.args[0])
        if len(both) > 1:
            return Node("list", tuple(Node("quantity", (one,), node.data) for one in both), ",")
        return node
    if node.head == "named":
        return _settled_name(node)
    if node.head == "relation":
        return _settled_relation(node)
    if node.head == "member" and isinstance(node.data, Name) and node.args[0].head == "set":
        return settled(Node("named", node.args, ((node.data,), False)))
    if node.head == "family" and node.data is None:
        return _family(node) or node
    if node.head == "set" and node.args:
        inner = settled(Node("list", node.args, ","))
        return Node("set", inner.args) if inner.head == "list" else inner
    if node.head == "builder":
        return _settled_builder(node)
    if node.head == "text":
        if node.data in _EMPTY:
            return Node("set")
        return Node("text", data=re.sub(r"^(?:a|an|the) (?=\w\w)", "", node.data))
    if node.head == "list":
        return _settled_list(node)
    return node


def _settled_name(node: Node) -> Node:
    names, approximate = node.data
    values = [settled(value) for value in node.args]
    if approximate and len(values) == 1:
        values = [Node("list", tuple(values), "~~")]
    elif len(values) > 1:
        if approximate:
            values = [_about(tuple(values))]
        elif all(_alike(values[0], value) for value in values[1:]):
            values = values[-1:]
        else:
            raise NotUnderstoodError("a chain of values that are not equal")
    return Node("named", tuple(values), (names, False))


def _settled_relation(node: Node) -> Node:
    if set(node.data) <= {"=", "~"}:
        return _identity(node) or node
    if node.data == ("!=",) and any(part.head in ("pm", "mp") for part in walk(node)):
        return Node("list", (_signed(node, "pm"), _signed(node, "mp")), "and")
    return node


def _identity(node: Node) -> Node | None:
    """The value of a chain whose sides are all equal (``2 + 3 = 5``)."""
    sides = node.args
    if "~" in node.data:
        if any(names_of(side) for side in sides):
            return None
        return _about(sides)
    if all(side.head in EXPRESSIONS | {"quantity"} for side in sides):
        try:
            if all(same_quantity(sides[0], side) for side in sides[1:]):
                return sides[-1]
        except UndecidedError:
            return None
    return None


def _about(sides: tuple[Node, ...]) -> Node:
    """Sides of ``\\approx``: an exact value and its rounded ones, right to their last digit."""
    plain = [side.args[0] if side.head == "quantity" else side for side in sides]
    try:
        values = [evaluate(side) for side in plain]
    except UndefinedError:
        values = []
    if not values or any(
        not is_about(values[0], value, _last_place(side))
        for value, side in zip(values[1:], plain[1:], strict=True)
    ):
        raise NotUnderstoodError("an approximation that is none")
    return Node("list", sides, "~")


def _last_place(node: Node) -> Fraction:
    """What one in the last decimal of a number counts for; 1 for a whole one."""
    place = Fraction(1)
    while node.head == "neg":
        node = node.args[0]
    while node.head == "decimal" and (node.data / place).denominator > 1 and place > 10**-40:
        place /= 10
    return place


def _settled_builder(node: Node) -> Node:
    r"""``\{x \mid x = 1\}`` as the set of its values."""
    name, joint = node.data
    values: list[Node] = []
    for part in node.args:
        if part.head == "member" and part.args[0].head == "numbers":
            continue
        if part.head != "named" or [n.text for n in part.data[0]] != [name.text]:
            return node
        values += _elements(settled(part).args[0])
    alike = len(values) == 1 or joint in ("or", ",")
    return settled(Node("set", tuple(values))) if values and alike else node


def _settled_list(node: Node) -> Node:
    if node.data in ("~", "~~"):
        return node
    if len(node.args) == 1:
        return settled(node.args[0])
    family = _family(node)
    if family is not None:
        return family
    parts = [settled(part) for part in node.args]
    first = parts[0]
    if first.head == "relation" and first.data == ("!=",) and first.args[0].head == "var":
        parts = [  # "x \\ne 1, 2"
            Node("relation", (first.args[0], p), ("!=",)) if p.head in EXPRESSIONS else p
            for p in parts
        ]
        return Node("list", tuple(parts), "and")
    # "x = 2, 3" and "x = 2 or x = 3" name every value
    if first.head == "named" and first.data[0][0].kind != "figure":
        name = first.data[0]
        if all(p.head != "named" or p.data[0] == name for p in parts) and not any(
            is_set_like(p) or p.head == "relation" for p in parts
        ):
            values = [p.args[0] if p.head == "named" else p for p in parts]
            inner = settled(Node("list", tuple(values), node.data))
            return Node("named", (inner,), (name, False))
    flat: list[Node] = []
    for before, part in zip(node.args, parts, strict=True):
        spread = part.head == "list" and before.head != "list" and part.data not in ("~", "~~")
        flat += part.args if spread else (part,)
    if node.data == "or" and all(_alike(flat[0], one) for one in flat[1:]):
        return flat[0]  # "1/2 or 0.5"
    return flat[0] if len(flat) == 1 else Node("list", tuple(flat), node.data)


def _family(node: Node) -> Node | None:
    r"""``2k\pi, k \in \mathbb{Z}``: the values, the variable and where it is from."""
    last = node.args[-1]
    if last.head != "member" or len(node.args) < 2 or not isinstance(last.data, Name):
        return None
    inside = node.args[:-1]
    plain = [p.args[0] if p.head == "named" else p for p in inside]
    if any(p.head not in EXPRESSIONS for p in plain):
        return None
    if not any(last.data.text in names_of(p) for p in plain):
        return None
    if last.args[0].head == "numbers" and last.args[0].data in ("R", "C"):  # as all variables are
        return settled(Node("list", inside, node.data))
    return Node("family", (*plain, last.args[0]), last.data.text)


def _elements(node: Node) -> tuple[Node, ...]:
    return node.args if node.head in ("list", "set") else (node,)


def _both_signs(node: Node) -> tuple[Node, ...]:
    r"""The two values of an expression with ``\pm``, or the only one of any other."""
    if not any(part.head in ("pm", "mp") for part in walk(node)):
        return (node,)
    return _signed(node, "pm"), _signed(node, "mp")


def _signed(node: Node, plus: str) -> Node:
    if node.head in ("pm", "mp"):
        inner = _signed(node.args[0], plus)
        return inner if node.head == plus else Node("neg", (inner,))
    if not node.args:
        return node
    return Node(node.head, tuple(_signed(arg, plus) for arg in node.args), node.data)


def _alike(first: Node, second: Node) -> bool:
    """Whether two sides of a chain of equals are equal."""
    values = EXPRESSIONS | {"quantity"}
    if first.head in values and second.head in values:
        return same_quantity(first, second)
    return first == second
