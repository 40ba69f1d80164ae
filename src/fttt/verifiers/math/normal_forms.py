r"""Normal forms of answers: one text for equal answers, for votes and for a string rule.

:func:`normal_form` works without numerical values, in the caller's own process: expressions become
sums of products of powers with rational coefficients, roots of whole numbers are factored, names,
units and layout are dropped, lists are sorted and inequalities become intervals. So ``\frac12`` and
``0.5``, ``x = 2\sqrt2`` and ``\sqrt8``, ``x > 3`` and ``(3, \infty)`` have one form each. Two
different forms may still be equal (an identity of sines, say): they vote apart.

:func:`strict_form` is the string rule of the MATH benchmark, for comparison with published figures,
written from its description (Hendrycks et al. 2021): two answers are equal if their LaTeX is the
same string without spaces, delimiters, units on the right, percent and degree signs, and with one
way to write a fraction or root. ``0.25`` and ``\frac14`` differ by it; use it only where a figure
was published with it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.lexer import NotUnderstoodError, scan, spelled
from fttt.verifiers.math.syntax_tree import (
    EXPRESSIONS,
    OPPOSITE,
    Name,
    Node,
    ascending,
    both_signs,
    has_both_signs,
    operands,
    renamed,
    walk,
)
from fttt.verifiers.number_parser import Number, parse_number

__all__ = ["normal_form", "strict_form"]

Monomial = tuple[tuple[str, Fraction], ...]
"""Atoms (variables, constants, primes, functions) and their powers, sorted."""
Sum = dict[Monomial, Fraction]
"""A sum of products, each with its coefficient."""

_TERMS = 64
_BITS = 2048
_LARGEST_PRIME = 1000
_LARGEST_POWER = 12
_LARGEST_FACTORIAL = 60


class _TooLongError(Exception):
    """The form is too long, or the answer has none."""


@lru_cache(maxsize=4096)
def normal_form(answer: str) -> str:
    """The form of an answer; without one its tokens, or its text without extra spaces."""
    number = parse_number(answer)
    if number is not None:
        return str(number.plain)
    try:
        tree = readings(answer)[0]
        try:
            return _form(tree)
        except (_TooLongError, RecursionError):
            return spelled(scan(answer))
    except NotUnderstoodError:
        return " ".join(answer.split())


def _form(node: Node) -> str:
    """The form of a tree."""
    if node.head in EXPRESSIONS:
        return _listed(map(_form, both_signs(node))) if has_both_signs(node) else _text(_sum(node))
    if node.head in ("quantity", "member"):
        return _form(node.args[0])
    if node.head == "named":
        name, value = node.data[0][0], node.args[0 if node.data[1] else -1]
        if name.kind == "tuple" and value.head == "tuple":  # "(y, x) = (3, 2)"
            pairs = sorted(zip(name.params, value.args, strict=False), key=lambda pair: pair[0])
            value = Node("tuple", tuple(part for _, part in pairs), value.data)
        return _form(value)
    if node.head in ("list", "set"):
        return _list_form(node)
    if node.head == "tuple":
        brackets = "()" if node.data == "<>" else node.data
        return f"{brackets[0]}{', '.join(map(_form, node.args))}{brackets[1]}"
    if node.head == "matrix":
        return _matrix_form(node)
    if node.head == "relation":
        return _relation_form(node)
    if node.head == "builder":
        reals = Node("numbers", data="R")
        parts = [p for p in node.args if not (p.head == "member" and p.args[0] == reals)]
        if len(parts) == 1:
            return _form(parts[0])
    if node.head in ("union", "inter"):
        sign = " U " if node.head == "union" else " ^ "
        return sign.join(sorted(_form(arg) for arg in operands(node, node.head)))
    if node.head == "minus":
        return _without_form(node)
    if node.head == "numbers":
        return "(-infty, infty)" if node.data == "R" else str(node.data)
    if node.head == "ratio":
        return _ratio_form(node)
    if node.head == "time":
        numbers, half = node.data[0], node.data[1].replace("clock", "")
        return f"{numbers[0]}:{':'.join(f'{n:02}' for n in numbers[1:])} {half}".strip()
    if node.head == "based":
        return str(node.data[0])
    if node.head in ("text", "choice"):
        return str(node.data)
    if node.head == "mod":
        return " mod ".join(_form(arg) for arg in node.args)
    raise _TooLongError


def _listed(forms: Iterable[str]) -> str:
    return ", ".join(sorted(forms, key=lambda form: (len(form), form)))


def _list_form(node: Node) -> str:
    """Values in order of size; values with different names as a tuple in order of the names."""
    parts = node.args
    if not parts:
        return "emptyset"
    last = parts[-1]
    if len(parts) > 1 and last.head == "member" and isinstance(last.data, Name):  # "2n\\pi, n in Z"
        values = [part.args[0] if part.head == "named" else part for part in parts[:-1]]
        inner = [renamed(value, {last.data.text: "k"}) for value in values]
        return f"{_listed(map(_form, inner))}, k in {_form(last.args[0])}"
    names = [part.data[0][0].text for part in parts if part.head == "named"]
    if len(names) == len(parts) > 1 and len(set(names)) == len(parts) and node.head == "list":
        named = sorted(zip(names, parts, strict=True), key=lambda one: (len(one[0]), one[0]))
        return f"({', '.join(_form(part) for _, part in named)})"
    intervals = [part for part in parts if part.head == "relation"]
    if len(intervals) == len(parts) > 0 and node.data == "or":
        return " U ".join(sorted(map(_form, parts)))
    if any(part.head == "dots" for part in parts):
        return ", ".join("..." if part.head == "dots" else _form(part) for part in parts)
    return _listed(
        _form(one)
        for part in parts
        for one in (both_signs(part) if part.head in EXPRESSIONS else (part,))
    )


def _without_form(node: Node) -> str:
    """The real numbers without a few as intervals; any other difference as written."""
    whole, without = node.args
    points = [_sum(arg) for arg in without.args] if without.head == "set" else []
    if whole.data == "R" and points and all(set(point) <= {()} for point in points):
        values = sorted({point.get((), Fraction(0)) for point in points})
        ends = ["-infty", *(str(Number(value)) for value in values), "infty"]
        return " U ".join(sorted(f"({a}, {b})" for a, b in itertools.pairwise(ends)))
    return " - ".join(_form(arg) for arg in node.args)


def _matrix_form(node: Node) -> str:
    rows, columns, _ = node.data
    cells = [_form(cell) for cell in node.args]
    if columns == 1:
        return f"({', '.join(cells)})"
    lines = [", ".join(cells[n * columns : (n + 1) * columns]) for n in range(rows)]
    return f"[{'; '.join(lines)}]"


def _ratio_form(node: Node) -> str:
    sums = [_sum(arg) for arg in node.args]
    values = [one.get((), Fraction(0)) for one in sums]
    if any(set(one) - {()} for one in sums) or not all(values):
        return ":".join(map(_text, sums))
    scale = math.lcm(*(v.denominator for v in values))
    whole = [int(v * scale) for v in values]
    common = math.gcd(*whole)
    return ":".join(str(n // common) for n in whole)


# ---- relations


def _relation_form(node: Node) -> str:
    """An equation solved for ``y`` or set to zero; a linear inequality as an interval."""
    if any(arg.head not in EXPRESSIONS for arg in node.args):
        raise _TooLongError
    if len(node.args) == 3 and all(sign in OPPOSITE for sign in node.data):
        (low, middle, high), signs = ascending(node)
        if middle.head == "var" and signs[0][0] == signs[1][0] == "<":
            brackets = "(["[signs[0] == "<="] + ")]"[signs[1] == "<="]
            return f"{brackets[0]}{_form(low)}, {_form(high)}{brackets[1]}"
    if len(node.args) != 2:
        return "".join(
            f" {sign} {_form(arg)}" for sign, arg in zip(("", *node.data), node.args, strict=True)
        ).strip()
    left, right = node.args
    difference = _plus(_sum(left), _scaled(_sum(right), Fraction(-1)))
    sign = node.data[0]
    if sign in ("=", "~") and (not difference or all(set(_sum(arg)) <= {()} for arg in node.args)):
        return _form(right if sign == "=" else left)
    variables = {name for term in difference for name, _ in term if name.isalpha()} - _CONSTANTS
    if sign == "=":
        solved = _solved(difference, "y") if "y" in variables else None
        return _text(_monic(difference)) + " = 0" if solved is None else _text(solved[0])
    solved = _solved(difference, next(iter(variables))) if len(variables) == 1 else None
    if solved is None or sign not in (*OPPOSITE, "!="):
        factor = _leading(difference)
        turned = OPPOSITE.get(sign, sign) if factor < 0 else sign
        return f"{_text(_monic(difference))} {turned} 0"
    value, slope = solved
    bound = _text(value)
    if sign == "!=":
        return f"(-infty, {bound}) U ({bound}, infty)"
    sign = OPPOSITE[sign] if slope < 0 else sign
    if sign[0] == "<":
        return f"(-infty, {bound}{')' if sign == '<' else ']'}"
    return f"{'(' if sign == '>' else '['}{bound}, infty)"


def _solved(difference: Sum, name: str) -> tuple[Sum, Fraction] | None:
    """The value of a variable that makes the difference zero, and its coefficient."""
    alone = ((name, Fraction(1)),)
    slope = difference.get(alone)
    rest = {term: c for term, c in difference.items() if term != alone}
    if slope is None or any(atom == name or name in atom for term in rest for atom, _ in term):
        return None
    return _scaled(rest, -1 / slope), slope


def _leading(one: Sum) -> Fraction:
    return one[min(one)] if one else Fraction(1)


def _monic(one: Sum) -> Sum:
    return _scaled(one, 1 / _leading(one)) if one else one


# ---- sums of products

_CONSTANTS = {"pi", "e", "i", "infty"}


def _constant(value: Fraction) -> Sum:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise _TooLongError
    return {(): value} if value else {}


def _atom(name: str, power: Fraction = Fraction(1)) -> Sum:
    return {((name, power),): Fraction(1)}


def _plus(first: Sum, second: Sum) -> Sum:
    total = dict(first)
    for term, value in second.items():
        total[term] = total.get(term, Fraction(0)) + value
        if not total[term]:
            del total[term]
    if len(total) > _TERMS:
        raise _TooLongError
    return total


def _scaled(one: Sum, by: Fraction) -> Sum:
    return {term: value * by for term, value in one.items()} if by else {}


def _times(first: Sum, second: Sum) -> Sum:
    if len(first) * len(second) > _TERMS:
        raise _TooLongError
    total: Sum = {}
    for one, value in first.items():
        for other, factor in second.items():
            term, extra = _joined(one, other)
            total = _plus(total, {term: value * factor * extra})
    for value in total.values():
        _constant(value)  # raises if it is too large
    return total


def _joined(first: Monomial, second: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two terms, and its rational part from powers of primes and of ``i``."""
    powers = dict(first)
    for name, power in second:
        powers[name] = powers.get(name, Fraction(0)) + power
    extra = Fraction(1)
    for name, power in list(powers.items()):
        if name.isdigit():
            whole = math.floor(power)
            if abs(whole) * int(name).bit_length() > _BITS:
                raise _TooLongError
            extra *= Fraction(int(name)) ** whole
            powers[name] = power - whole
        elif name == "i" and power.denominator == 1:
            extra *= -1 if power % 4 >= 2 else 1
            powers[name] = power % 2
    return tuple(sorted((n, p) for n, p in powers.items() if p)), extra


def _inverse(one: Sum) -> Sum:
    if not one:
        raise _TooLongError
    if len(one) == 1:
        ((term, value),) = one.items()
        found, extra = _joined((), tuple((name, -power) for name, power in term))
        return {found: extra / value}
    if len(one) == 2:
        first, second = ({term: value} for term, value in one.items())
        below = _plus(_times(first, first), _scaled(_times(second, second), Fraction(-1)))
        if set(below) == {()}:  # the conjugate
            return _scaled(_plus(first, _scaled(second, Fraction(-1))), 1 / below[()])
    factor = _leading(one)
    return _scaled(_atom(f"({_text(_monic(one))})", Fraction(-1)), 1 / factor)


def _power(base: Sum, exponent: Fraction) -> Sum:
    if exponent.denominator != 1:
        return _root(_power(base, Fraction(exponent.numerator)), exponent.denominator)
    if exponent < 0:
        return _inverse(_power(base, -exponent))
    if len(base) == 1:
        ((term, value),) = base.items()
        if max(value.numerator.bit_length(), value.denominator.bit_length()) * exponent > _BITS:
            raise _TooLongError
        found, extra = _joined((), tuple((name, power * exponent) for name, power in term))
        return {found: value ** int(exponent) * extra}
    if exponent > _LARGEST_POWER:
        return _atom(f"({_text(base)})", exponent)
    total = _constant(Fraction(1))
    for _ in range(int(exponent)):
        total = _times(total, base)
    return total


def _root(inside: Sum, degree: int) -> Sum:
    if not inside:
        return {}
    if len(inside) > 1:
        return _atom(f"({_text(inside)})", Fraction(1, degree))
    ((term, value),) = inside.items()
    total = _constant(Fraction(1))
    if value < 0:
        total = _constant(Fraction(-1)) if degree % 2 else _atom("i", Fraction(2, degree))
        if degree not in (2,) and degree % 2 == 0:
            raise _TooLongError
    whole = abs(value.numerator) * value.denominator ** (degree - 1)
    for prime, count in _factors(whole):
        total = _times(total, _number_power(prime, Fraction(count, degree)))
    total = _scaled(total, Fraction(1, value.denominator))
    for name, power in term:
        raised = power / degree
        if raised.denominator == 1 and degree % 2 == 0 and name not in _CONSTANTS:
            name = f"abs({name})" if raised % 2 else name
        total = _times(total, _atom(name, raised))
    return total


def _number_power(prime: int, power: Fraction) -> Sum:
    term, extra = _joined((), ((str(prime), power),))
    return {term: extra}


def _factors(value: int) -> list[tuple[int, int]]:
    """The small prime factors and the rest, which counts as a prime."""
    if value.bit_length() > _BITS:
        raise _TooLongError
    found = []
    prime = 2
    while prime <= _LARGEST_PRIME and prime * prime <= value:
        power = 0
        while value % prime == 0:
            value //= prime
            power += 1
        if power:
            found.append((prime, power))
        prime += 1 if prime == 2 else 2
    if value > 1:
        root = math.isqrt(value)
        found.append((root, 2) if root * root == value else (value, 1))
    return found


def _sum(node: Node) -> Sum:
    """An expression as a sum of products."""
    head, args = node.head, node.args
    if head in ("number", "decimal"):
        return _constant(node.data)
    if head in ("const", "var"):
        return _atom(str(node.data))
    if head == "add":
        total: Sum = {}
        for arg in args:
            total = _plus(total, _sum(arg))
        return total
    if head == "neg":
        return _scaled(_sum(args[0]), Fraction(-1))
    if head == "mul":
        total = _constant(Fraction(1))
        for arg in args:
            total = _times(total, _sum(arg))
        return total
    if head == "div":
        return _times(_sum(args[0]), _inverse(_sum(args[1])))
    if head == "percent":
        return _scaled(_sum(args[0]), Fraction(1, 100))
    if head == "degree":
        return _sum(args[0])
    if head in ("pow", "root"):
        return _raised(node)
    if head in ("fact", "binom"):
        return _counted(node)
    if head == "abs":
        return _atom(f"abs({_text(_sum(args[0]))})")
    if head in ("call", "apply", "index"):
        return _called(node)
    if head in ("sum", "prod"):
        inner = ", ".join(_text(_sum(arg)) for arg in args)
        return _atom(f"{head}[{node.data}]({inner})")
    raise _TooLongError


def _raised(node: Node) -> Sum:
    base, exponent = node.args
    power = _sum(exponent)
    value = power.get((), Fraction(0))
    if power and set(power) != {()}:
        mark = "^" if node.head == "pow" else "^1/"
        return _atom(f"({_text(_sum(base))}){mark}({_text(power)})")
    if node.head == "pow":
        return _power(_sum(base), value)
    if value.denominator != 1 or not 0 < value <= _LARGEST_POWER:
        raise _TooLongError
    return _root(_sum(base), int(value))


def _counted(node: Node) -> Sum:
    """Factorials and binomial coefficients, computed where they are small."""
    sums = [_sum(arg) for arg in node.args]
    values = [one.get((), Fraction(0)) for one in sums]
    whole = all(set(one) <= {()} for one in sums) and all(v.denominator == 1 for v in values)
    if whole and all(0 <= value <= _LARGEST_FACTORIAL for value in values):
        counts = [int(value) for value in values]
        return _constant(
            Fraction(math.factorial(*counts) if len(counts) == 1 else math.comb(*counts))
        )
    return _atom(f"{node.head}({', '.join(map(_text, sums))})")


def _called(node: Node) -> Sum:
    degrees = {part.head for part in walk(node)} & {"degree"}
    mark = " degrees" if degrees and node.head == "call" else ""
    inner = ", ".join(_text(_sum(arg)) for arg in node.args)
    if node.head == "call" and node.data == "exp":
        return _atom("e") if inner == "1" else _exponential(node.args[0])
    return _atom(f"{node.data}({inner}{mark})")


def _exponential(argument: Node) -> Sum:
    return _raised(Node("pow", (Node("const", data="e"), argument)))


def _text(one: Sum) -> str:
    """A sum of products as a line of text, the highest powers first."""
    if not one:
        return "0"
    terms = sorted(one, key=lambda term: (-sum((p for _, p in term), Fraction(0)), term))
    text = ""
    for term in terms:
        value = one[term]
        sign = "-" if value < 0 else "+"
        text += f" {sign} " if text else sign.strip("+")
        text += _term_text(term, abs(value))
    if len(text) > 20 * _TERMS:
        raise _TooLongError
    return text


def _term_text(term: Monomial, value: Fraction) -> str:
    factors = [] if value == 1 and term else [str(Number(value))]
    roots: dict[int, int] = {}
    for name, power in term:
        if name.isdigit():
            whole = int(name) ** power.numerator
            roots[power.denominator] = roots.get(power.denominator, 1) * whole
        else:
            shown = str(power) if power.denominator == 1 else f"({power})"
            factors.append(name if power == 1 else f"{name}^{shown}")
    for degree, inside in sorted(roots.items()):
        factors.append(f"sqrt({inside})" if degree == 2 else f"{inside}^(1/{degree})")
    return "*".join(factors)


# ---- the string rule of the MATH benchmark

_DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")
_FRACTION = re.compile(r"\\frac(?:([^\s{])([^\s{])|([^\s{])(?=\{))")
_ROOT = re.compile(r"\\sqrt([^\s{\[])")
_SLASH = re.compile(r"(-?\d+)/(-?\d+)")


def strict_form(answer: str) -> str:
    """The string that the benchmark's rule compares."""
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
