r"""Whether two answers are the same mathematics: what runs in the math verifier's workers.

Both answers are read as trees and compared by what they are: numbers and expressions by value,
quantities with their units, lists and sets in any order, tuples in their own, intervals and
inequalities as sets of real numbers, equations up to a factor, words as words. What is not
understood is no answer but for the one that is written in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from fttt.verifiers.math.meaning import settled
from fttt.verifiers.math.notation import NotUnderstoodError, scan, spelled
from fttt.verifiers.math.parser import Units, readings
from fttt.verifiers.math.quantities import same_quantity
from fttt.verifiers.math.sampling import constant_ratio, same_value
from fttt.verifiers.math.sets import is_set_like, real_set
from fttt.verifiers.math.tree import (
    EXPRESSIONS,
    Name,
    Node,
    constant,
    names_of,
    number,
    renamed,
    replaced,
    walk,
)
from fttt.verifiers.math.values import UndecidedError, UndefinedError, evaluate

__all__ = ["equivalent", "same"]

_ROUND = frozenset({"()", "<>"})


def equivalent(request: tuple[str, str]) -> bool:
    """The worker's job: whether the answers ``[gold, answer]`` are the same.

    Raises:
        NotUnderstoodError: one of them cannot be read, and they are not written in the same way.
        UndecidedError: their values are too large or take too long to compute.
    """
    gold, answer = request
    if spelled(scan(gold)) == spelled(scan(answer)):
        return True
    undecided: Exception | None = None
    known, units = _gold_readings(gold)
    try:
        given = readings(answer, units)
    except NotUnderstoodError:
        if any(_same_words(first, first, gold, answer) for first in known):
            return True
        raise
    for first in known:
        for second in given:
            try:
                if same(first, second) or _same_words(first, second, gold, answer):
                    return True
            except UndecidedError as error:
                undecided = error
    if undecided is not None:
        raise undecided
    return False


def _gold_readings(gold: str) -> tuple[tuple[Node, ...], Units]:
    """The trees of the gold answer, and which letters of the other answer are units.

    Where the gold answer has variables, letters are variables; where it has a unit, a letter
    behind a number may be one.
    """
    trees = readings(gold, "marked")
    parts = [part for tree in trees for part in walk(tree)]
    if any(part.head == "quantity" and part.data.unit is not None for part in parts):
        return trees, "all"
    if any(part.head == "var" for part in parts):
        return readings(gold, "none"), "none"
    return trees, "marked"


def _same_words(first: Node, second: Node, gold: str, answer: str) -> bool:
    """Words, choices and numerals with a base, which may be written without their dress."""
    heads = {first.head, second.head}
    if not heads & {"text", "choice", "based"}:
        return False
    if not heads <= EXPRESSIONS | {"text", "choice", "based"}:
        return False
    if "based" in heads:
        based, other = (first, answer) if first.head == "based" else (second, gold)
        return _letters(other) == str(based.data[0]).casefold()
    return _letters(gold) == _letters(answer)


def _letters(text: str) -> str:
    """The letters and digits of an answer; a single letter keeps its size."""
    words = [t.text for t in scan(text) if t.kind in ("word", "letter", "number")]
    signs = "".join(t.text for t in scan(text) if t.sign("-", "+", "/", "^", "_", "*", "="))
    letters = "".join(words)
    return signs + (letters if len(letters) == 1 else letters.casefold())


def same(gold: Node, answer: Node) -> bool:
    """Whether two trees mean the same.

    Raises:
        UndecidedError: values are too large or take too long.
    """
    gold, answer = settled(gold), settled(answer)
    if gold == answer:
        return True
    if _is_rounded(gold) or _is_rounded(answer):
        return _same_rounded(gold, answer)
    if "named" in (gold.head, answer.head) or _assigned(gold) or _assigned(answer):
        return _same_named(gold, answer)
    if "choice" in (gold.head, answer.head) and gold.head != answer.head:
        choice, other = (gold, answer) if gold.head == "choice" else (answer, gold)
        if other.head == "var":
            return bool(choice.data == other.data)
        return bool(choice.args) and same(choice.args[0], other)
    for kind in ("text", "choice", "based", "mod", "family"):
        if kind in (gold.head, answer.head):
            return gold.head == answer.head and _ALIKE[kind](gold, answer)
    if is_set_like(gold) or is_set_like(answer):
        return _same_set(gold, answer)
    if "time" in (gold.head, answer.head) or "ratio" in (gold.head, answer.head):
        return _same_ratio(gold, answer)
    if "relation" in (gold.head, answer.head):
        return gold.head == answer.head and _same_relation(gold, answer)
    if gold.head in _LISTS or answer.head in _LISTS:
        return _same_list(gold, answer)
    return same_quantity(gold, answer)


_LISTS = frozenset({"list", "set", "tuple", "matrix"})


# Words and the like


def _same_text(gold: Node, answer: Node) -> bool:
    first, second = (node.data.replace(" ", "").casefold() for node in (gold, answer))
    return bool(first == second)


def _same_data(gold: Node, answer: Node) -> bool:
    return bool(gold.data == answer.data)


def _same_residue(gold: Node, answer: Node) -> bool:
    (first, modulus), (second, other) = gold.args, answer.args
    if not same_value(modulus, other):
        return False
    try:
        values = [evaluate(node) for node in (first, second, modulus)]
    except UndefinedError:
        return False
    if not all(isinstance(value, Fraction) for value in values):
        return same_value(first, second)
    return bool(values[2]) and ((values[0] - values[1]) / values[2]).denominator == 1


def _same_family(gold: Node, answer: Node) -> bool:
    if len(gold.args) != len(answer.args):
        return False
    *first, domain = gold.args
    *second, other = (renamed(arg, {answer.data: gold.data}) for arg in answer.args)
    return same(domain, other) and _in_any_order(first, second)


_ALIKE = {
    "text": _same_text,
    "choice": _same_data,
    "based": _same_data,
    "mod": _same_residue,
    "family": _same_family,
}


# Names


def _assigned(node: Node) -> dict[str, Node] | None:
    """What each name of an answer is: ``x = 2, y = 3``, ``(x, y) = (2, 3)``."""
    parts = node.args if node.head in ("list", "set") else (node,)
    found: dict[str, Node] = {}
    for part in parts:
        if part.head != "named" or len(part.data[0]) != 1:
            return None
        name, value = part.data[0][0], part.args[0]
        members = name.params if name.kind == "tuple" else (name.text,)
        if found.keys() & set(members):
            return None
        if name.kind != "tuple":
            found[name.text] = value
        elif value.head == "tuple" and len(value.args) == len(name.params):
            found |= dict(zip(name.params, value.args, strict=True))
        else:
            return None
    return found if len(found) >= len(parts) and len(found) > 1 else None


def _same_named(gold: Node, answer: Node) -> bool:
    first, second = _assigned(gold), _assigned(answer)
    if first is not None and second is not None:
        if first.keys() != second.keys():
            return False
        return all(same(first[name], second[name]) for name in first)
    if first is not None or second is not None:
        values, other = (first, answer) if first is not None else (second or {}, gold)
        if other.head == "named" and len(other.args) == 1:
            other = other.args[0]
        return _same_assignment(values, other)
    if gold.head == answer.head == "named":
        return _both_named(gold, answer)
    named, other = (gold, answer) if gold.head == "named" else (answer, gold)
    if other.head == "relation":
        return _same_equation(named, other)
    if is_set_like(other):
        return _same_set(gold, answer)
    value = named.args[0]
    return same(value, other) if named is gold else same(other, value)


def _same_assignment(values: dict[str, Node], other: Node) -> bool:
    """Whether a tuple, in the alphabet's order, or a list holds the values of several names."""
    listed = [values[name] for name in sorted(values, key=_order)]
    if other.head == "tuple":
        return other.data in _ROUND and _in_order(listed, other.args)
    return other.head in ("list", "set") and _in_any_order(listed, other.args)


def _order(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)_?(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def _both_named(gold: Node, answer: Node) -> bool:
    first, second = gold.args[0], answer.args[0]
    if _conflict(gold.data[0], answer.data[0]):
        variables = names_of(first) | names_of(second)
        if not variables or not all(n.kind == "var" for n in (*gold.data[0], *answer.data[0])):
            return False
        return _same_relation(_as_relation(gold), _as_relation(answer))
    one, other = gold.data[0][0], answer.data[0][0]
    if one.kind == other.kind == "function" and len(one.params) == len(other.params):
        if one.params != other.params and not all(p.isalpha() for p in one.params + other.params):
            return False
        second = renamed(second, dict(zip(other.params, one.params, strict=True)))
    return same(first, second)


def _conflict(first: Sequence[Name], second: Sequence[Name]) -> bool:
    """Whether two names of the same kind are of different things."""
    for kind in ("var", "function", "figure", "tuple"):
        one = {name.text for name in first if name.kind == kind}
        other = {name.text for name in second if name.kind == kind}
        if one and other and not one & other:
            return True
    one, other = (
        {w for n in names if n.kind == "words" for w in n.text.split()} for names in (first, second)
    )
    return bool(one and other and not one & other)


def _as_relation(named: Node) -> Node:
    name = named.data[0][0]
    return Node("relation", (Node("var", data=name.text), named.args[0]), ("=",))


# Relations


def _same_equation(named: Node, relation: Node) -> bool:
    """``y = g(x)`` and an equation: the same up to a factor, or solved for ``y``."""
    name, value = named.data[0][0], named.args[0]
    if name.kind != "var" or value.head not in EXPRESSIONS or set(relation.data) != {"="}:
        return False
    if name.text not in {n for side in relation.args for n in names_of(side)}:
        return False
    if not names_of(value):
        # "2x = 10" is no solution
        return False
    if _same_relation(_as_relation(named), relation):
        return True
    if len(relation.args) != 2:
        return False
    difference = _difference(relation)
    if difference is None or not same_value(replaced(difference, name.text, value), number(0)):
        return False
    at = [replaced(difference, name.text, number(n)) for n in range(3)]
    bent = Node("add", (at[0], at[2]))
    straight = same_value(bent, Node("mul", (number(2), at[1])))
    return straight and not same_value(at[0], at[1])


def _difference(relation: Node) -> Node | None:
    left, right = relation.args
    if left.head not in EXPRESSIONS or right.head not in EXPRESSIONS:
        return None
    return Node("add", (left, Node("neg", (right,))))


def _same_relation(gold: Node, answer: Node) -> bool:
    """Equations and inequalities up to a constant factor; chains side by side."""
    if len(gold.args) != len(answer.args):
        return False
    if len(gold.args) > 2:
        if gold.data == answer.data and _in_order(gold.args, answer.args):
            return True
        turned = tuple({"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(s, s) for s in answer.data)
        return gold.data == turned[::-1] and _in_order(gold.args, answer.args[::-1])
    first, second = _difference(gold), _difference(answer)
    if first is None or second is None:
        return gold.data == answer.data and _in_order(gold.args, answer.args)
    ratio = constant_ratio(first, second)
    if ratio is None or getattr(ratio, "imag", 0) != 0:
        return False
    sign = answer.data[0]
    if ratio < 0:
        sign = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)
    return bool(gold.data[0] == sign)


# Sets of numbers


def _same_set(gold: Node, answer: Node) -> bool:
    first, second = real_set(gold), real_set(answer)
    if first is not None and second is not None:
        (one, name), (other, another) = first, second
        return (name is None or another is None or name == another) and one.same(other)
    if (first is None) != (second is None):
        return False
    if gold.head == answer.head == "relation":
        return _same_relation(gold, answer)
    gold, answer = _as_interval(gold, answer), _as_interval(answer, gold)
    if gold.head == answer.head == "member":
        return gold.data == answer.data and same(gold.args[0], answer.args[0])
    if gold.head == answer.head == "tuple":
        return gold.data == answer.data and _in_order(gold.args, answer.args)
    if "member" in (gold.head, answer.head):
        return same(*(n.args[0] if n.head == "member" else n for n in (gold, answer)))
    if gold.head == answer.head == "builder":
        names = {answer.data[0].text: gold.data[0].text}
        parts = [_renamed_name(renamed(arg, names), names) for arg in answer.args]
        return gold.data[1] == answer.data[1] and _in_any_order(list(gold.args), parts)
    if gold.head == answer.head and gold.head in ("union", "inter"):
        return _in_any_order(_operands(gold, gold.head), _operands(answer, gold.head))
    if gold.head == answer.head == "list":
        return gold.data == answer.data and _in_any_order(list(gold.args), list(answer.args))
    return (
        gold.head == answer.head and gold.data == answer.data and _in_order(gold.args, answer.args)
    )


def _renamed_name(node: Node, names: dict[str, str]) -> Node:
    if node.head != "member" or not isinstance(node.data, Name):
        return node
    name = node.data
    return Node("member", node.args, Name(name.kind, names.get(name.text, name.text)))


def _operands(node: Node, head: str) -> list[Node]:
    if node.head != head:
        return [node]
    return [part for arg in node.args for part in _operands(arg, head)]


def _as_interval(node: Node, other: Node) -> Node:
    """An inequality with bounds that are no numbers as the interval that it means.

    Of two letters the one that ``other`` has is the bound.
    """
    if node.head == "member":
        return _as_interval(node.args[0], other)
    if node.head != "relation" or not set(node.data) <= {"<", ">", "<=", ">="}:
        return node
    sides, signs = node.args, node.data
    if signs[0][0] == ">":
        sides = sides[::-1]
        signs = tuple({">": "<", ">=": "<="}.get(s, s) for s in signs[::-1])
    if not set(signs) <= {"<", "<="}:
        return node
    closed = [sign == "<=" for sign in signs]
    infinite = constant("infty")
    known = {part.data for part in walk(other) if part.head == "var"}
    if len(sides) == 3 and sides[1].head == "var":
        return Node("tuple", (sides[0], sides[2]), "(["[closed[0]] + ")]"[closed[1]])
    if len(sides) != 2:
        return node
    low, high = sides
    if high.head == "var" and high.data not in names_of(low) | known:
        return Node("tuple", (low, infinite), "(["[closed[0]] + ")")
    if low.head == "var" and low.data not in names_of(high) | known:
        return Node("tuple", (Node("neg", (infinite,)), high), "(" + ")]"[closed[0]])
    return node


# Approximations


def _is_rounded(node: Node) -> bool:
    return node.head == "list" and node.data in ("~", "~~")


def _same_rounded(gold: Node, answer: Node) -> bool:
    """Of ``2/3 \\approx 0.67`` the first value is exact; a rounded one is no exact gold answer."""
    if _is_rounded(gold):
        return any(same(one, answer) or _same_rounded(one, answer) for one in gold.args)
    if not _is_rounded(answer):
        return same(gold, answer)
    exact = answer.args[:1] if answer.data == "~" else ()
    rough = answer.args if _is_written_rounded(gold) else ()
    return any(same(gold, one) for one in (*exact, *rough))


def _is_written_rounded(node: Node) -> bool:
    """Whether a gold answer is a decimal, which may be rounded itself."""
    while node.head in ("neg", "quantity", "named"):
        node = node.args[0]
    return node.head == "decimal"


# Lists


def _in_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    if len(gold) != len(answer):
        return False
    return all(same(g, a) for g, a in zip(gold, answer, strict=True))


def _in_any_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for part in gold:
        match = next((other for other in left if same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_list(gold: Node, answer: Node) -> bool:
    heads = {gold.head, answer.head}
    if any(part.head == "dots" for node in (gold, answer) for part in node.args):
        return (
            gold.head == answer.head
            and gold.data == answer.data
            and _in_order(gold.args, answer.args)
        )
    if heads <= {"list", "set"}:
        return _in_any_order(gold.args, answer.args)
    if "matrix" in heads:
        matrix, other = (gold, answer) if gold.head == "matrix" else (answer, gold)
        if other.head == "matrix":
            return gold.data == answer.data and _in_order(gold.args, answer.args)
        column = other.head == "tuple" and other.data in _ROUND and matrix.data[1] == 1
        return column and _in_order(gold.args, answer.args)
    if "tuple" not in heads or "set" in heads:
        return False
    if heads == {"tuple"}:
        alike = gold.data == answer.data or {gold.data, answer.data} <= _ROUND
        return (alike or _is_plain(gold, answer)) and _in_order(gold.args, answer.args)
    brackets = gold if gold.head == "tuple" else answer
    if "list" not in heads or not (brackets.data in _ROUND or _is_plain(brackets, brackets)):
        return False
    return _in_order(gold.args, answer.args)


def _is_plain(gold: Node, answer: Node) -> bool:
    """Whether square brackets can be no interval, since there are three parts or more."""
    return len(gold.args) > 2 and {gold.data, answer.data} <= _ROUND | {"[]"}


def _same_ratio(gold: Node, answer: Node) -> bool:
    if gold.head == answer.head == "time":
        return _same_time(gold.data, answer.data)
    first, second = _ratio(gold), _ratio(answer)
    if first is None or second is None or "ratio" not in (gold.head, answer.head):
        return False
    if len(first) != len(second):
        return False
    if any(part.head == "dots" for part in (*first, *second)):
        return _in_order(first, second)
    return all(
        same_value(Node("mul", (one, second[0])), Node("mul", (first[0], other)))
        for one, other in zip(first, second, strict=True)
    )


def _ratio(node: Node) -> tuple[Node, ...] | None:
    if node.head == "ratio":
        return node.args
    if node.head == "time" and not node.data[1]:
        return tuple(number(part) for part in node.data[0])
    return (node, number(1)) if node.head in EXPRESSIONS else None


def _same_time(gold: tuple[tuple[int, ...], str], answer: tuple[tuple[int, ...], str]) -> bool:
    """Times of day; without "a.m." or "p.m." either half is meant."""
    (first, half), (second, other) = (
        (numbers, half if half in ("am", "pm") else "") for numbers, half in (gold, answer)
    )
    size = max(len(first), len(second))
    one = (*first, *(0,) * (size - len(first)))
    two = (*second, *(0,) * (size - len(second)))
    if half and other:
        return half == other and one == two
    if not half and not other:
        return one == two
    if not half:
        one, two, half = two, one, other
    hours = one[0] % 12 + (12 if half == "pm" else 0)
    return two in (one, (hours, *one[1:]))
