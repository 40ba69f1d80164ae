r"""Syntax trees of answers: nodes, names of values, pairs of brackets.

A name may be left out of an answer (``x = 5`` is 5), an expression may not (``x^2 = 5`` is not 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from fttt.verifiers.math.lexer import FUNCTIONS, NotUnderstoodError, Token, word_set

__all__ = [
    "EXPRESSIONS",
    "NEGATIVES",
    "OPPOSITE",
    "Head",
    "Name",
    "Node",
    "as_interval",
    "ascending",
    "assignments",
    "both_signs",
    "combine",
    "constant",
    "determinant",
    "difference",
    "elements",
    "has_both_signs",
    "is_multiple_of_pi",
    "is_numeric",
    "last_place",
    "match_brackets",
    "name_of",
    "name_order",
    "names_differ",
    "names_of",
    "number",
    "operands",
    "outside",
    "renamed",
    "replaced",
    "walk",
    "with_round_brackets",
    "with_sign",
    "words_of",
]

# ---- nodes

Head = Literal[
    # expressions
    "number", "decimal", "const", "var", "index", "apply", "call", "add", "mul", "div", "neg",
    "pow", "root", "abs", "fact", "binom", "percent", "degree", "sum", "prod", "lim", "int",
    "dots", "pm", "mp",
    # answers that expressions are parts of
    "list", "set", "tuple", "union", "inter", "minus", "matrix", "relation", "named", "member",
    "builder", "family", "ratio", "time", "quantity", "text", "choice", "based", "numbers", "mod",
]  # fmt: skip

EXPRESSIONS = word_set(
    "number decimal const var index apply call add mul div neg pow root abs fact binom "
    "percent degree sum prod lim int dots pm mp"
)
"""Heads of expressions, which have a value."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node: its kind, its parts, and other data of that kind (a name, a value, brackets)."""

    head: Head
    args: tuple[Node, ...] = ()
    data: Any = None


@dataclass(frozen=True, slots=True)
class Name:
    r"""The name of a value in an answer: ``x``, ``f(x)``, ``\angle ABC``, ``\text{Area}``.

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
    """A constant by its name."""
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
    if node.head == "var":
        return frozenset({node.data})
    found = [names_of(arg) for arg in node.args]
    if node.head in ("sum", "prod", "lim", "int"):
        found[0] -= {node.data}  # of the body, not of the bounds
    return frozenset[str]().union(*found)


def replaced(node: Node, values: Mapping[str, Node]) -> Node:
    """The node with other expressions in place of variables."""
    if node.head == "var":
        return values.get(node.data, node)
    if not node.args:
        return node
    return Node(node.head, tuple(replaced(arg, values) for arg in node.args), node.data)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other names for its variables."""
    return replaced(node, {old: Node("var", data=new) for old, new in names.items()})


def has_both_signs(node: Node) -> bool:
    r"""Whether the node contains ``\pm`` or ``\mp``."""
    return any(part.head in ("pm", "mp") for part in walk(node))


def with_sign(node: Node, plus: str) -> Node:
    r"""The node with ``\pm`` read as plus (``plus`` is ``"pm"``) or as minus (``"mp"``)."""
    if node.head in ("pm", "mp"):
        inner = with_sign(node.args[0], plus)
        return inner if node.head == plus else Node("neg", (inner,))
    return Node(node.head, tuple(with_sign(arg, plus) for arg in node.args), node.data)


def both_signs(node: Node) -> tuple[Node, ...]:
    r"""The two values of a node with ``\pm``, or the node itself."""
    return (with_sign(node, "pm"), with_sign(node, "mp")) if has_both_signs(node) else (node,)


def operands(node: Node, head: Head) -> list[Node]:
    """The operands of nested operations of one kind, such as ``A \\cup B \\cup C``."""
    if node.head != head:
        return [node]
    return [part for arg in node.args for part in operands(arg, head)]


def elements(node: Node) -> tuple[Node, ...]:
    """The elements of a list or set; any other node is its only element."""
    return node.args if node.head in ("list", "set") else (node,)


OPPOSITE = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
"""The sign of an inequality with its sides exchanged."""


def ascending(relation: Node) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The sides and signs of a relation, in reverse order where its first sign is ``>``."""
    sides, signs = relation.args, relation.data
    if signs[0][0] != ">":
        return sides, signs
    return sides[::-1], tuple(OPPOSITE.get(sign, sign) for sign in signs[::-1])


def difference(left: Node, right: Node) -> Node:
    """The expression ``left - right``."""
    return Node("add", (left, Node("neg", (right,))))


def is_numeric(node: Node) -> bool:
    """Whether the node is a number, or a quotient, product or root of numbers."""
    return node.head in ("number", "decimal") or (
        node.head in ("div", "mul", "neg", "root") and all(is_numeric(arg) for arg in node.args)
    )


def is_multiple_of_pi(node: Node) -> bool:
    """Whether the node is a rational multiple of pi, or a number."""
    if node.head == "mul":
        return all(is_multiple_of_pi(arg) for arg in node.args)
    return is_numeric(node) or node == constant("pi")


def as_interval(node: Node, other: Node) -> Node:
    """The interval of an inequality with symbolic bounds; any other node unchanged.

    Of two letters the one in ``other`` is the bound.
    """
    if node.head == "member":
        return as_interval(node.args[0], other)
    if node.head != "relation" or not set(node.data) <= {"<", ">", "<=", ">="}:
        return node
    sides, signs = ascending(node)
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


def last_place(node: Node) -> Fraction:
    """The place value of the last decimal of a number; 1 for a whole number."""
    place = Fraction(1)
    while node.head == "neg":
        node = node.args[0]
    while node.head == "decimal" and (node.data / place).denominator > 1 and place > 10**-40:
        place /= 10
    return place


# ---- matrices and operators on them

_STRUCTURES = frozenset({"matrix", "tuple"})


def combine(head: Head, parts: Iterable[Node], data: object = None) -> Node:
    """A node of expressions; a number times a matrix is the matrix of its products.

    Raises:
        NotUnderstoodError: a part that has no value, or another operation on matrices.
    """
    parts = [_as_angle(part) for part in parts]
    matrices = [part for part in parts if part.head in _STRUCTURES]
    if matrices:
        return _scaled(head, parts, matrices)
    for part in parts:
        if part.head not in EXPRESSIONS:
            raise NotUnderstoodError(f"a {part.head} in an expression")
    return Node(head, tuple(parts), data)


def _as_angle(node: Node) -> Node:
    """An angle in degrees as a part of an expression; any other node unchanged."""
    unit = node.data.unit if node.head == "quantity" else None
    angle = unit is not None and unit.powers == (("degree", 1),)
    return Node("degree", node.args) if angle else node


def _scaled(head: Head, parts: list[Node], matrices: list[Node]) -> Node:
    if len(matrices) > 1 or head not in ("mul", "div", "neg"):
        raise NotUnderstoodError("an expression of matrices")
    matrix = matrices[0]
    if matrix.head == "tuple" and matrix.data not in ("()", "<>"):
        raise NotUnderstoodError("a multiple of an interval")
    if head == "div" and parts[1] is matrix:
        raise NotUnderstoodError("a division by a matrix")
    cells = tuple(
        combine(head, [cell if part is matrix else part for part in parts]) for cell in matrix.args
    )
    return Node(matrix.head, cells, matrix.data)


def determinant(matrix: Node) -> Node:
    """The determinant of a matrix as an expression.

    Raises:
        NotUnderstoodError: it is not square, or has more than four rows.
    """
    rows, columns, _ = matrix.data
    if rows != columns or rows > 4:
        raise NotUnderstoodError("a determinant of that size")
    return _expanded([list(matrix.args[n * rows : (n + 1) * rows]) for n in range(rows)])


def _expanded(rows: list[list[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    parts = []
    for column, cell in enumerate(rows[0]):
        minor = [[c for n, c in enumerate(row) if n != column] for row in rows[1:]]
        part = Node("mul", (cell, _expanded(minor)))
        parts.append(Node("neg", (part,)) if column % 2 else part)
    return Node("add", tuple(parts))


# ---- names

NEGATIVES = word_set("not no never cannot isn't aren't nor and or")
"""Words that are in no name."""
_ANGLES = [[f"\\{name}"] for name in ("alpha", "beta", "gamma", "theta", "phi", "varphi")]
_PARTS = word_set("twice half double triple square cube reciprocal negative opposite")
"""First words of an expression in words: "twice the length"."""
_POINTS = 2
"""Adjacent letters that name a segment."""


def words_of(tokens: tuple[Token, ...]) -> str:
    """Words, letters and numbers as a line of text, without punctuation or capitals of words."""
    parts = []
    for token in tokens:
        if token.sign(".", ",", "{", "}", "'"):
            continue
        text = str(token.value) if token.value is not None else token.text
        parts.append(text.casefold() if token.kind == "word" else text)
    return " ".join(parts)


def name_of(
    tokens: tuple[Token, ...], partner: Mapping[int, int], low: int, high: int
) -> Name | None:
    """The name that fills the span; ``None`` for an expression."""
    while low < high and tokens[low].sign("{") and partner[low] == high - 1:
        low, high = low + 1, high - 1
    span = tokens[low:high]
    if not span:
        return None
    if any(t.kind == "word" for t in span) and _is_words(span):
        return Name("words", words_of(span))
    return (
        _ratio_of_angle(span)
        or _figure(span)
        or _tuple(span)
        or _variable(tokens, partner, low, high)
    )


def _is_words(span: tuple[Token, ...]) -> bool:
    words = [t.text.lower() for t in span if t.kind == "word"]
    first = next((word for word in words if word not in ("a", "the")), "")
    if NEGATIVES & set(words) or first in _PARTS:
        return False
    plain = all(t.kind in ("word", "letter") or t.sign(".", "{", "}", "'", "(", ")") for t in span)
    return plain and any(t.kind == "word" and t.text not in FUNCTIONS for t in span)


def _figure(span: tuple[Token, ...]) -> Name | None:
    """Points, segments, angles, lengths and areas."""
    core = [t for t in span if not t.sign("{", "}")]
    kind = ""
    if core[0].kind == "letter" and core[0].text == "m" and core[1:2]:
        core = core[1:] if core[1].command("angle") else core
    if core[0].kind == "command" and core[0].text in ("angle", "triangle", "widehat", "hat"):
        kind, core = f"{core[0].text} ".replace("widehat", "angle"), core[1:]
    elif len(core) > 2 and core[0].sign("|", "lvert", "||") and core[-1].sign("|", "rvert", "||"):
        core = core[1:-1]
        if len(core) == 1:
            return None
    elif core[0].sign("[") and core[-1].sign("]"):
        kind, core = "area ", core[1:-1]
    if core and core[0].command("overline", "vec", "bar", "overarc", "wideparen"):
        kind, core = kind or ("" if len(core) > 2 else "bar "), core[1:]
    if [t.text for t in core[:1]] == ["frac"] and len(core) == 5 and core[1].text == "d":
        return Name("figure", f"d{core[2].text}/d{core[4].text}")
    letters = all(t.kind == "letter" or t.sign("'") for t in core)
    if not letters or not (kind or len(core) >= _POINTS):
        return None
    capitals = all(t.text.isupper() or t.sign("'") for t in core)
    if not capitals and not (kind and kind != "area "):
        return None
    points = [t.text for t in core]
    if not any(t.sign("'") for t in core):
        points = min(points, points[::-1])  # the angle ABC is the angle CBA
    return Name("figure", kind + "".join(points))


def _ratio_of_angle(span: tuple[Token, ...]) -> Name | None:
    r"""``\sin\theta``, ``\cos A``, ``\tan\angle ABC``: of an angle, not of an unknown ``x``."""
    if span[0].kind != "command" or span[0].text not in ("sin", "cos", "tan", "cot", "sec", "csc"):
        return None
    angle = [t for t in span[1:] if not t.sign("{", "}", "(", ")") and not t.command("angle")]
    points = all(t.kind == "letter" and not t.text.islower() for t in angle)
    if not angle or not (points or [t.text for t in angle] in _ANGLES):
        return None
    return Name("figure", f"{span[0].text} {''.join(t.text for t in angle)}")


def _tuple(span: tuple[Token, ...]) -> Name | None:
    if not (span[0].sign("(", "langle") and span[-1].sign(")", "rangle")):
        return None
    names = "".join(t.text for t in span[1:-1] if not t.sign("{", "}")).split(",")
    if len(names) < 2 or not all(re.fullmatch(r"\\?[A-Za-z]\w*'*", name) for name in names):
        return None
    return Name("tuple", ",".join(names), tuple(names))


def _variable(
    tokens: tuple[Token, ...], partner: Mapping[int, int], low: int, high: int
) -> Name | None:
    """A variable, or a function with its argument."""
    token = tokens[low]
    functions = ("Pr", "det", "deg", "dim", "arg")
    if token.command("max", "min", "gcd", "lcm") and high > low + 1:
        of_letters = any(t.kind == "letter" for t in tokens[low:high])
        return Name("words", words_of(tokens[low:high])) if of_letters else None
    if token.kind != "letter" and not token.command(*functions):
        return None
    place, text = low + 1, token.text
    if place < high and tokens[place].sign("_"):
        end = partner.get(place + 1, place + 1) + 1
        script = [t for t in tokens[place + 1 : end] if not t.sign("{", "}")]
        if not any(t.sign(",") for t in script):  # "x_{1,2}" are the values of x
            text += "_" + "".join(str(t.value) if t.value is not None else t.text for t in script)
        place = end
    if place < high and tokens[place].sign("^"):
        end = partner.get(place + 1, place + 1) + 1
        power = "".join(t.text for t in tokens[place + 1 : end] if not t.sign("{", "}"))
        if power not in ("-1", "*", "'", "''") or (power == "-1" and end == high):
            return None
        text += f"^{power}"
        place = end
    while place < high and tokens[place].sign("'"):
        text += "'"
        place += 1
    if place >= high:
        return Name("var", text) if place == high else None
    if tokens[place].sign("(", "[") and partner[place] == high - 1:
        inside = tokens[place + 1 : high - 1]
        params = "".join(t.text for t in inside if not t.sign("{", "}")).split(",")
        simple = all(re.fullmatch(r"\\?[A-Za-z]+", param) for param in params)
        if not simple and not (token.text.isupper() or token.text in "fgh" or text[1:]):
            return None  # "x(x+1) = 6" is an equation
        if not simple and any(t.sign("+", "-", "*", "/") for t in inside) and text not in "fghP":
            return None
        return Name("function", text, tuple(params) if simple else (words_of(inside),))
    if token.kind == "command" and all(t.kind == "letter" for t in tokens[place:high]):
        return Name("function", text, tuple(t.text for t in tokens[place:high]))
    return None


def assignments(node: Node) -> dict[str, Node] | None:
    """The value of each name of an answer: ``x = 2, y = 3``, ``(x, y) = (2, 3)``."""
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


def name_order(name: str) -> tuple[str, int]:
    """The sort key of a name in the order of letters and of numeric indices."""
    match = re.fullmatch(r"(.*?)_?(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def names_differ(first: Sequence[Name], second: Sequence[Name]) -> bool:
    """Whether two lists of names have different names of the same kind."""
    for kind in ("var", "function", "figure", "tuple"):
        one = {name.text for name in first if name.kind == kind}
        other = {name.text for name in second if name.kind == kind}
        if one and other and not one & other:
            return True
    one, other = (
        {w for n in names if n.kind == "words" for w in n.text.split()} for names in (first, second)
    )
    return bool(one and other and not one & other)


# ---- brackets

_CLOSING = {
    "(": (")", "]"),
    "[": (")", "]"),
    "{": ("}",),
    "\\{": ("\\}",),
    "langle": ("rangle",),
    "lfloor": ("rfloor",),
    "lceil": ("rceil",),
    "lvert": ("rvert",),
}


def match_brackets(tokens: tuple[Token, ...]) -> dict[int, int]:
    """The index of the closing bracket of each opening bracket.

    Round and square brackets may close each other: ``(0, 1]`` is an interval.

    Raises:
        NotUnderstoodError: brackets that do not match.
    """
    partners: dict[int, int] = {}
    opened: list[int] = []
    closing = {text for texts in _CLOSING.values() for text in texts}
    for place, token in enumerate(tokens):
        begins = token.kind == "command" and token.text.startswith("begin ")
        if begins or (token.kind == "sign" and token.text in _CLOSING):
            opened.append(place)
            continue
        ends = token.kind == "command" and token.text.startswith("end ")
        if not ends and not (token.kind == "sign" and token.text in closing):
            continue
        first = tokens[opened[-1]] if opened else None
        if first is None or not (
            (ends and first.text == f"begin {token.text[4:]}")
            or (not ends and token.text in _CLOSING.get(first.text, ()))
        ):
            raise NotUnderstoodError(f"a {token.text!r} that nothing opens")
        partners[opened.pop()] = place
    if opened:
        raise NotUnderstoodError(f"a {tokens[opened[-1]].text!r} that nothing closes")
    return partners


def outside(partner: Mapping[int, int], low: int, high: int) -> list[int]:
    """The indices of tokens of a span outside all brackets, opening brackets included."""
    indices, place = [], low
    while place < high:
        indices.append(place)
        place = partner.get(place, place) + 1
    return indices


def with_round_brackets(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """The tokens of open intervals written as ``]1, 2[`` in the form ``(1, 2)``."""
    found, depth = [], 0
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else Token("sign", ",")
        closes = before.kind != "sign" or before.sign(")", "}", "%")
        if token.sign("[") and depth and closes:
            token = Token("sign", ")")
        elif token.sign("]") and not depth:
            token = Token("sign", "(")
        depth += token.sign("(", "[") - token.sign(")", "]")
        found.append(token)
    return tuple(found)
