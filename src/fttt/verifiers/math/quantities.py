"""Numbers and quantities: values with percent signs, units of measurement and names of things."""

from __future__ import annotations

from fttt.verifiers.math.sampling import constant_ratio, same_value
from fttt.verifiers.math.tree import EXPRESSIONS, Node, constant, number
from fttt.verifiers.math.units import Suffix, same_things

__all__ = ["same_quantity"]

_ORDERS = frozenset(["O", "o", "\\Theta", "\\Omega", "\\omega"])
"""Functions that are the same for an argument times a constant."""


def same_quantity(gold: Node, answer: Node) -> bool:
    """Whether two quantities, counts or plain numbers are the same."""
    first, known = _parts(gold)
    second, given = _parts(answer)
    if first is None or second is None:
        return False
    if known is None or given is None:
        return _same_number(first, second)
    if known.unit is None or given.unit is None:
        unit = known.unit or given.unit
        if unit is not None and unit.powers != (("unit", 1),):
            return False
        return (unit is not None or same_things(known.things, given.things)) and _same_number(
            first, second
        )
    return _same_measure(first, known, second, given)


def _same_measure(first: Node, known: Suffix, second: Node, given: Suffix) -> bool:
    assert known.unit is not None
    assert given.unit is not None
    powers = {known.unit.powers, given.unit.powers}
    angle, turn = (("degree", 1),), (("radian", 1),)
    if powers == {angle, turn}:
        return same_value(_radians(first, known), _radians(second, given))
    temperatures = {(("celsius", 1),), (("fahrenheit", 1),)}
    if len(powers) > 1 and not (angle in powers and powers & temperatures):
        return False
    rates = [{one for one in s.things if one.startswith("per ")} for s in (known, given)]
    if all(rates) and not rates[0] & rates[1]:
        return False
    scales = (1, 1) if len(powers) > 1 else (known.unit.scale, given.unit.scale)
    return same_value(
        Node("mul", (first, number(scales[0]))), Node("mul", (second, number(scales[1])))
    )


def _radians(node: Node, suffix: Suffix | None) -> Node:
    """An angle of degrees or radians in radians."""
    if suffix is None or suffix.unit is None or suffix.unit.powers != (("degree", 1),):
        return node
    return Node("div", (Node("mul", (node, constant("pi"))), number(180)))


def _parts(node: Node) -> tuple[Node | None, Suffix | None]:
    if node.head == "quantity":
        return node.args[0], node.data
    return (node, None) if node.head in EXPRESSIONS else (None, None)


def _same_number(gold: Node, answer: Node) -> bool:
    """Expressions by value; a percentage is the number before its sign, or a hundredth of it."""
    if "percent" in (gold.head, answer.head):
        if gold.head == answer.head:
            return same_value(gold.args[0], answer.args[0])
        sign, plain = (gold, answer) if gold.head == "percent" else (answer, gold)
        return same_value(sign.args[0], plain) or same_value(sign, plain)
    alike = gold.head == answer.head == "apply" and gold.data == answer.data
    if alike and gold.data in _ORDERS and len(gold.args) == len(answer.args) == 1:
        return constant_ratio(gold.args[0], answer.args[0]) is not None
    return same_value(gold, answer)
