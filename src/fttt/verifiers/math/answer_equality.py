r"""Equality of answers as trees.

Both are brought to one form (a value for each sign of ``\pm``, a name
once, sets by their elements) and compared by their kind: numbers and expressions by value,
quantities with their units, lists and sets in any order, tuples in order, intervals and
inequalities as sets of real numbers, equations up to a factor, words as words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from fttt.verifiers.math.evaluation import UndecidedError, UndefinedError, evaluate, is_about
from fttt.verifiers.math.lexer import NotUnderstoodError
from fttt.verifiers.math.syntax_tree import (
    EXPRESSIONS,
    OPPOSITE,
    Name,
    Node,
    as_interval,
    assignments,
    both_signs,
    difference,
    elements,
    has_both_signs,
    last_place,
    name_order,
    names_differ,
    names_of,
    number,
    operands,
    renamed,
    replaced,
)
from fttt.verifiers.math.value_equality import (
    constant_ratio,
    is_set_like,
    real_set,
    same_quantity,
    same_time,
    same_value,
    values_at,
)

__all__ = ["same", "settled"]

_ROUND = frozenset({"()", "<>"})


def same(gold: Node, answer: Node) -> bool:
    """Whether two trees are the same answer.

    Raises:
        UndecidedError: values are too large or take too long.
    """
    gold, answer = settled(gold), settled(answer)
    if gold == answer:
        return True
    if _is_rounded(gold) or _is_rounded(answer):
        return _same_rounded(gold, answer)
    if "named" in (gold.head, answer.head) or assignments(gold) or assignments(answer):
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


# ---- words, choices, residues, families


def _same_text(gold: Node, answer: Node) -> bool:
    first, second = (node.data.replace(" ", "").casefold() for node in (gold, answer))
    return bool(first == second)


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


_ALIKE: dict[str, Callable[[Node, Node], bool]] = {
    "text": _same_text,
    "choice": lambda gold, answer: gold.data == answer.data,
    "based": lambda gold, answer: gold.data == answer.data,
    "mod": _same_residue,
    "family": _same_family,
}


# ---- names


def _same_named(gold: Node, answer: Node) -> bool:
    first, second = assignments(gold), assignments(answer)
    if first is not None and second is not None:
        alike = first.keys() == second.keys()
        return alike and all(same(first[name], second[name]) for name in first)
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
    """Whether a tuple in alphabetical order, or a list, has the values of several names."""
    listed = [values[name] for name in sorted(values, key=name_order)]
    if other.head == "tuple":
        return other.data in _ROUND and _in_order(listed, other.args)
    return other.head in ("list", "set") and _in_any_order(listed, other.args)


def _both_named(gold: Node, answer: Node) -> bool:
    first, second = gold.args[0], answer.args[0]
    if names_differ(gold.data[0], answer.data[0]):
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


def _as_relation(named: Node) -> Node:
    name = named.data[0][0]
    return Node("relation", (Node("var", data=name.text), named.args[0]), ("=",))


# ---- relations


def _same_equation(named: Node, relation: Node) -> bool:
    """``y = g(x)`` and an equation: the same up to a factor, or solved for ``y``."""
    name, value = named.data[0][0], named.args[0]
    if name.kind != "var" or value.head not in EXPRESSIONS or set(relation.data) != {"="}:
        return False
    known = {n for side in relation.args for n in names_of(side)}
    if name.text not in known or not names_of(value):  # "2x = 10" is no solution
        return False
    if _same_relation(_as_relation(named), relation):
        return True
    if len(relation.args) != 2:
        return False
    zero = _zero_side(relation)
    if zero is None or not same_value(replaced(zero, {name.text: value}), number(0)):
        return False
    at = values_at(zero, name.text, (0, 1, 2))
    linear = same_value(Node("add", (at[0], at[2])), Node("mul", (number(2), at[1])))
    return linear and not same_value(at[0], at[1])


def _zero_side(relation: Node) -> Node | None:
    """The expression that an equation sets to zero; ``None`` if a side is no expression."""
    left, right = relation.args
    both = left.head in EXPRESSIONS and right.head in EXPRESSIONS
    return difference(left, right) if both else None


def _same_relation(gold: Node, answer: Node) -> bool:
    """Equations and inequalities up to a constant factor; chains side by side."""
    if len(gold.args) != len(answer.args):
        return False
    if len(gold.args) > 2:
        if gold.data == answer.data and _in_order(gold.args, answer.args):
            return True
        reverse = tuple(OPPOSITE.get(sign, sign) for sign in answer.data[::-1])
        return gold.data == reverse and _in_order(gold.args, answer.args[::-1])
    first, second = _zero_side(gold), _zero_side(answer)
    if first is None or second is None:
        return _same_parts(gold, answer)
    ratio = constant_ratio(first, second)
    if ratio is None or getattr(ratio, "imag", 0) != 0:
        return False
    sign = answer.data[0]
    return bool(gold.data[0] == (OPPOSITE.get(sign, sign) if ratio < 0 else sign))


# ---- sets


def _same_set(gold: Node, answer: Node) -> bool:
    first, second = real_set(gold), real_set(answer)
    if first is not None and second is not None:
        (one, name), (other, another) = first, second
        return (name is None or another is None or name == another) and one.same(other)
    if first is not None or second is not None:
        return False
    if gold.head == answer.head == "relation":
        return _same_relation(gold, answer)
    gold, answer = as_interval(gold, answer), as_interval(answer, gold)
    if (gold.head == "member") != (answer.head == "member"):
        return same(*(n.args[0] if n.head == "member" else n for n in (gold, answer)))
    if gold.head == answer.head == "builder":
        names = {answer.data[0].text: gold.data[0].text}
        parts = [_renamed_name(renamed(arg, names), names) for arg in answer.args]
        return gold.data[1] == answer.data[1] and _in_any_order(gold.args, parts)
    if gold.head == answer.head and gold.head in ("union", "inter"):
        return _in_any_order(operands(gold, gold.head), operands(answer, gold.head))
    if gold.head == answer.head == "list":
        return gold.data == answer.data and _in_any_order(gold.args, answer.args)
    return _same_parts(gold, answer)


def _renamed_name(node: Node, names: dict[str, str]) -> Node:
    if node.head != "member" or not isinstance(node.data, Name):
        return node
    name = node.data
    return Node("member", node.args, Name(name.kind, names.get(name.text, name.text)))


# ---- approximations


def _is_rounded(node: Node) -> bool:
    return node.head == "list" and node.data in ("~", "~~")


def _same_rounded(gold: Node, answer: Node) -> bool:
    """Compare approximations: of ``2/3 \\approx 0.67`` only the first value is exact."""
    if _is_rounded(gold):
        return any(same(one, answer) or _same_rounded(one, answer) for one in gold.args)
    if not _is_rounded(answer):
        return same(gold, answer)
    exact = answer.args[:1] if answer.data == "~" else ()
    node = gold
    while node.head in ("neg", "quantity", "named"):
        node = node.args[0]
    rough = answer.args if node.head == "decimal" else ()  # a decimal may be rounded itself
    return any(same(gold, one) for one in (*exact, *rough))


# ---- lists


def _same_parts(gold: Node, answer: Node) -> bool:
    """Whether both are of one kind, with equal data and equal parts in order."""
    alike = gold.head == answer.head and gold.data == answer.data
    return alike and _in_order(gold.args, answer.args)


def _in_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    alike = len(gold) == len(answer)
    return alike and all(same(g, a) for g, a in zip(gold, answer, strict=True))


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
        return _same_parts(gold, answer)
    if heads <= {"list", "set"}:
        return _in_any_order(gold.args, answer.args)
    if "matrix" in heads:
        matrix, other = (gold, answer) if gold.head == "matrix" else (answer, gold)
        if other.head == "matrix":
            return _same_parts(gold, answer)
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
    """Whether brackets cannot be an interval, since they hold three parts or more."""
    return len(gold.args) > 2 and {gold.data, answer.data} <= _ROUND | {"[]"}


def _same_ratio(gold: Node, answer: Node) -> bool:
    if gold.head == answer.head == "time":
        return same_time(gold.data, answer.data)
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


# ---- the form of a tree

_EMPTY = frozenset({"no solution", "no solutions", "empty set", "no real solutions"})


def settled(node: Node) -> Node:
    r"""The node in one form: two values for ``\pm``, no list of one, every name once."""
    if node.head in EXPRESSIONS:
        point = node.head == "apply" and node.data.isupper() and len(node.args) > 1
        if point and not names_of(node):  # the point "A(1, 2)"
            return Node("tuple", node.args, "()")
        return Node("list", both_signs(node), ",") if has_both_signs(node) else node
    if node.head == "quantity":
        if node.data.unit is None and not node.data.things:
            return settled(node.args[0])
        return Node("list", both_signs(node), ",") if has_both_signs(node) else node
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
    if node.data == ("!=",) and has_both_signs(node):
        return Node("list", both_signs(node), "and")
    return node


def _identity(node: Node) -> Node | None:
    """The last side of a chain of equal sides (``2 + 3 = 5``), else ``None``."""
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
    """A list of an exact value and its roundings, correct to their last digit."""
    plain = [side.args[0] if side.head == "quantity" else side for side in sides]
    try:
        values = [evaluate(side) for side in plain]
    except UndefinedError:
        values = []
    if not values or any(
        not is_about(values[0], value, last_place(side))
        for value, side in zip(values[1:], plain[1:], strict=True)
    ):
        raise NotUnderstoodError("an approximation that is none")
    return Node("list", sides, "~")


def _settled_builder(node: Node) -> Node:
    r"""``\{x \mid x = 1\}`` as the set of its elements."""
    name, joint = node.data
    values: list[Node] = []
    for part in node.args:
        if part.head == "member" and part.args[0].head == "numbers":
            continue
        if part.head != "named" or [n.text for n in part.data[0]] != [name.text]:
            return node
        values += elements(settled(part).args[0])
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
    r"""``2k\pi, k \in \mathbb{Z}``: the values, the variable and its domain."""
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


def _alike(first: Node, second: Node) -> bool:
    """Whether two sides of a chain of equals are equal."""
    values = EXPRESSIONS | {"quantity"}
    if first.head in values and second.head in values:
        return same_quantity(first, second)
    return first == second
