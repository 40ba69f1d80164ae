r"""Evaluation of expressions at a point, and comparison of the values.

Rational expressions have exact values; others are computed to 60 digits, and two values that agree
in 50 of them are equal. Functions without a definition (``f(x)``, ``a_n``) have an arbitrary but
fixed value at each argument. A value that would be too large or take too long is not computed, so
that no answer can block the process that judges it.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from mpmath import MPContext  # type: ignore[import-untyped]

from fttt.verifiers.math.syntax_tree import Node, names_of, walk

__all__ = [
    "EQUAL",
    "ROUGH",
    "STEPS",
    "Evaluation",
    "UndecidedError",
    "UndefinedError",
    "Value",
    "close",
    "combined",
    "evaluate",
    "is_about",
    "is_less",
    "mp",
    "near",
    "real_number",
]

Value = Any
"""A ``Fraction``, or mpmath's real or complex number."""

mp = MPContext()
"""A context of its own, so that the precision of other users of mpmath stays the same."""
_DIGITS = 60
mp.dps = _DIGITS
EQUAL = Fraction(1, 10**50)
"""Relative difference of two numbers that count as equal."""
ROUGH = Fraction(1, 10**10)
"""The same for values computed as a limit (an infinite sum, an integral)."""
_LIMIT_STEPS = 4000
"""Operations that a limit, an integral or an infinite sum counts for."""
_ABOUT = Fraction(1, 20)
"""Relative difference of two values in a stated approximation."""
_BITS = 1 << 20
"""Size of an exact number; larger ones are undecided."""
STEPS = 100_000
"""Operations of one comparison; a longer one is undecided."""

_CONSTANTS: dict[tuple[Node, bool], Value | UndefinedError] = {}
"""What limits without variables were found to be, so that no point computes them again."""
_MOST_CONSTANTS = 256


class UndefinedError(Exception):
    """The expression has no value at this point."""


class UndecidedError(Exception):
    """The expression is too large or takes too long to compute."""


class Evaluation:
    """Evaluates expressions at one point."""

    def __init__(
        self, point: Mapping[str, Fraction], *, real: bool, seed: int = 0, budget: list[int]
    ) -> None:
        """Fix the point.

        Args:
            point: the values of the variables.
            real: whether only real numbers are values.
            seed: the number of the point, for the values of functions without a definition.
            budget: operations left, in a list of one that several evaluations share.
        """
        self.point = dict(point)
        self.real = real
        self.seed = seed
        self.budget = budget
        self.rough = False
        """Whether a value was computed as a limit."""
        self.in_function = 0

    def value(self, node: Node) -> Value:
        self.budget[0] -= 1
        if self.budget[0] < 0:
            raise UndecidedError("a computation of too many steps")
        method: Callable[[Node], Value] | None = getattr(self, f"_{node.head}", None)
        if method is None:
            raise UndecidedError(f"the value of a {node.head}")
        return method(node)

    def values(self, node: Node) -> list[Value]:
        return [self.value(arg) for arg in node.args]

    # Atoms

    def _number(self, node: Node) -> Value:
        return node.data

    _decimal = _number

    def _const(self, node: Node) -> Value:
        if node.data == "pi":
            return +mp.pi
        if node.data == "e":
            return +mp.e
        if node.data == "i":
            if self.real:
                raise UndefinedError("an imaginary number")
            return mp.mpc(0, 1)
        return mp.inf

    def _var(self, node: Node) -> Value:
        value = self.point.get(node.data)
        return self.unknown(node.data, ()) if value is None else value

    def unknown(self, name: str, arguments: tuple[Value, ...]) -> Value:
        """An arbitrary but fixed value of a function at its arguments."""
        key = ",".join(str(a) if isinstance(a, Fraction) else mp.nstr(a, 15) for a in arguments)
        draw = random.Random(f"{name}({key}){self.seed}")
        return Fraction(draw.choice((-1, 1)) * draw.randint(101, 997), draw.randint(101, 499))

    def _index(self, node: Node) -> Value:
        return self.unknown(node.data, tuple(self.values(node)))

    _apply = _index

    # Arithmetic

    def _add(self, node: Node) -> Value:
        total: Value = Fraction(0)
        for value in self.values(node):
            total = _sized(_add(total, value))
        return total

    def _mul(self, node: Node) -> Value:
        total: Value = Fraction(1)
        for value in self.values(node):
            total = _sized(_mul(total, value))
        return total

    def _neg(self, node: Node) -> Value:
        return -self.value(node.args[0])

    def _div(self, node: Node) -> Value:
        above, below = self.values(node)
        if below == 0:
            raise UndefinedError("a division by nought")
        if isinstance(above, Fraction) and isinstance(below, Fraction):
            return _sized(above / below)
        return real_number(above) / real_number(below)

    def _percent(self, node: Node) -> Value:
        return _mul(self.value(node.args[0]), Fraction(1, 100))

    def _degree(self, node: Node) -> Value:
        value = self.value(node.args[0])
        return real_number(value) * mp.pi / 180 if self.in_function else value

    def _pow(self, node: Node) -> Value:
        base, exponent = self.values(node)
        fixed = isinstance(exponent, Fraction) and (
            exponent.denominator == 1 or not names_of(node.args[1])
        )
        if not fixed and self.real and not mp.re(real_number(base)) >= 0:
            raise UndefinedError("a varying power of a negative number")
        return self.power(base, exponent)

    def _root(self, node: Node) -> Value:
        inside, degree = self.values(node)
        if not isinstance(degree, Fraction) or degree.denominator != 1 or not 0 < degree < 1000:
            raise UndefinedError("a root of that degree")
        return self.power(inside, 1 / degree)

    def power(self, base: Value, exponent: Value) -> Value:
        if base == 0:
            if isinstance(exponent, Fraction) and exponent >= 0:
                return Fraction(exponent == 0)
            raise UndefinedError("a power of nought")
        if isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return self.whole_power(base, int(exponent))
            if isinstance(base, Fraction) or (mp.im(base) == 0 and not _is_infinite(base)):
                return self.fractional_power(base, exponent)
        if self.rough and mp.log(abs(real_number(base))) * mp.re(real_number(exponent)) < -100_000:
            return Fraction(0)
        _check_power(base, exponent)
        if self.real and not mp.re(real_number(base)) > 0:
            raise UndefinedError("a power of a negative number")
        return mp.power(real_number(base), real_number(exponent))

    @staticmethod
    def whole_power(base: Value, exponent: int) -> Value:
        if isinstance(base, Fraction):
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base in (1, -1):
                return base if exponent % 2 else Fraction(1)
            if size * abs(exponent) > _BITS:
                raise UndecidedError("a power that is too large")
            return base**exponent
        _check_power(base, Fraction(exponent))
        return mp.power(base, exponent)

    def fractional_power(self, base: Value, exponent: Fraction) -> Value:
        """A real number to a power that is a fraction; odd roots of negative ones are real."""
        negative = base < 0
        if negative and exponent.denominator % 2 == 0:
            if self.real:
                raise UndefinedError("an even root of a negative number")
            _check_power(base, exponent)
            return mp.power(real_number(base), real_number(exponent))
        size = -base if negative else base
        root: Value = None
        if isinstance(size, Fraction):
            root = _exact_root(size, exponent.denominator)
        if root is not None:
            result = self.whole_power(root, exponent.numerator)
        else:
            _check_power(size, exponent)
            result = mp.power(real_number(size), real_number(exponent))
        return -result if negative and exponent.numerator % 2 else result

    def _abs(self, node: Node) -> Value:
        return abs(self.value(node.args[0]))

    def _fact(self, node: Node) -> Value:
        return self.factorial(self.value(node.args[0]))

    @staticmethod
    def factorial(value: Value) -> Value:
        if isinstance(value, Fraction) and value.denominator == 1:
            if value < 0:
                raise UndefinedError("a factorial of a negative number")
            if value > 20_000:
                raise UndecidedError("a factorial that is too large")
            return Fraction(math.factorial(int(value)))
        _check_size(value, 10_000)
        return mp.gamma(real_number(value) + 1)

    def _binom(self, node: Node) -> Value:
        above, below = self.values(node)
        if isinstance(below, Fraction) and below.denominator == 1 and 0 <= below <= 2000:
            total: Value = Fraction(1)
            for n in range(int(below)):
                total = _sized(_mul(total, _mul(_add(above, Fraction(-n)), Fraction(1, n + 1))))
            return total
        _check_size(above, 10_000)
        _check_size(below, 10_000)
        return mp.binomial(real_number(above), real_number(below))

    # Functions

    def _call(self, node: Node) -> Value:
        name = node.data
        self.in_function += 1
        try:
            arguments = self.values(node)
        finally:
            self.in_function -= 1
        if name in ("max", "min", "gcd", "lcm"):
            return _choice(name, arguments)
        if name == "mod":
            first, second = arguments
            if not (isinstance(first, Fraction) and isinstance(second, Fraction) and second):
                raise UndefinedError("a remainder of what is no fraction")
            return first % second
        value = arguments[0]
        if name in ("floor", "ceil", "sgn"):
            return _stepped(name, value)
        if name in ("ln", "log", "lg"):
            return self.logarithm(name, arguments)
        if name == "exp":
            return self.power(+mp.e, value)
        if name == "abs":
            return abs(value)
        if name == "cbrt":
            return self.power(value, Fraction(1, 3))
        return self.elementary(name, value)

    def logarithm(self, name: str, arguments: list[Value]) -> Value:
        value = arguments[0]
        if value == 0 or (self.real and not mp.re(real_number(value)) > 0):
            raise UndefinedError("a logarithm of a negative number")
        result = mp.log(real_number(value))
        if name == "ln":
            return Fraction(0) if value == 1 else result
        base = real_number(arguments[1]) if len(arguments) > 1 else mp.mpf(10)
        if base in (0, 1) or (self.real and not mp.re(base) > 0):
            raise UndefinedError("a logarithm of that base")
        return result / mp.log(base)

    def elementary(self, name: str, value: Value) -> Value:
        """Trigonometric and hyperbolic functions and their inverses."""
        _check_size(value, 10**12)
        short = name.removeprefix("arc")
        try:
            function = getattr(mp, name if name == short else f"a{short}")
            result = function(real_number(value))
        except (ZeroDivisionError, ValueError) as error:
            raise UndefinedError(f"{name} of that number") from error
        if name == short:
            small = abs(result) < mp.mpf(10) ** (5 - mp.dps)
            return Fraction(0) if small and name in ("sin", "cos", "tan", "cot") else result
        if self.real and mp.im(result) != 0:
            raise UndefinedError(f"{name} of that number")
        return result

    # Big operators

    def _sum(self, node: Node) -> Value:
        return self.series(node, _add, Fraction(0))

    def _prod(self, node: Node) -> Value:
        return self.series(node, _mul, Fraction(1))

    def series(self, node: Node, step: Callable[[Value, Value], Value], total: Value) -> Value:
        body, first, last = node.args
        low, high = self.value(first), self.value(last)
        if not isinstance(low, Fraction) or low.denominator != 1:
            raise UndefinedError("a sum from what is no whole number")
        if isinstance(high, Fraction):
            if high.denominator != 1 or high < low - 1:
                raise UndefinedError("a sum to what is no whole number")
            if high - low > self.budget[0]:
                raise UndecidedError("a sum of too many terms")
            for n in range(int(low), int(high) + 1):
                total = _sized(step(total, self.at(node.data, Fraction(n), body)))
            return total
        if not _is_infinite(high) or mp.re(high) < 0:
            raise UndefinedError("a sum to what is no whole number")
        return self.numerically(
            node,
            lambda: (mp.nsum if node.head == "sum" else mp.nprod)(
                lambda n: real_number(self.at(node.data, Fraction(int(n)), body)),
                [int(low), mp.inf],
            ),
        )

    def at(self, name: str, value: Value, body: Node) -> Value:
        """The body of a sum, a limit or an integral at one value of its variable."""
        kept = self.point.get(name)
        self.point[name] = value
        try:
            return self.value(body)
        finally:
            if kept is None:
                del self.point[name]
            else:
                self.point[name] = kept

    def _lim(self, node: Node) -> Value:
        body, target, side = node.args
        goal = self.value(target)
        sides = [int(side.data)] if side.data else [1, -1]
        if _is_infinite(goal):
            sides = [1]
        found = [self.approached(node, body, real_number(goal), one) for one in sides]
        if any(abs(one - found[0]) > real_number(ROUGH) * (1 + abs(one)) for one in found):
            raise UndefinedError("a limit that differs from both sides")
        return found[0]

    def approached(self, node: Node, body: Node, goal: Value, side: int) -> Value:
        """The limit from one side."""
        name = node.data
        return self.numerically(
            Node("lim", (*node.args, Node("number", data=Fraction(side))), name),
            lambda: mp.limit(lambda x: real_number(self.at(name, x, body)), goal, direction=side),
        )

    def _int(self, node: Node) -> Value:
        body, first, last = node.args
        low, high = (real_number(self.value(bound)) for bound in (first, last))
        return self.numerically(
            node, lambda: mp.quad(lambda x: real_number(self.at(node.data, x, body)), [low, high])
        )

    def numerically(self, node: Node, compute: Callable[[], Value]) -> Value:
        """The result of a limiting process; that of a constant one is computed once."""
        self.rough = True
        if names_of(node) or any(part.head in ("apply", "index") for part in walk(node)):
            return self.converged(compute)
        known = node, self.real
        if known not in _CONSTANTS:
            if len(_CONSTANTS) == _MOST_CONSTANTS:
                _CONSTANTS.clear()
            try:
                _CONSTANTS[known] = self.converged(compute)
            except UndefinedError as error:
                _CONSTANTS[known] = error
        if isinstance(found := _CONSTANTS[known], UndefinedError):
            raise UndefinedError(str(found))
        return found

    def converged(self, compute: Callable[[], Value]) -> Value:
        """The result of a limiting process, if two precisions agree on it."""
        self.budget[0] -= _LIMIT_STEPS
        found = []
        for digits in (20, 30):
            with mp.workdps(digits):
                try:
                    found.append(+compute())
                except (ValueError, ZeroDivisionError, mp.NoConvergence) as error:
                    raise UndefinedError("a limit that does not converge") from error
        if not all(mp.isfinite(one) for one in found):
            raise UndefinedError("a limit that is infinite")
        if abs(found[0] - found[1]) > real_number(ROUGH) * (1 + abs(found[1])):
            raise UndefinedError("a limit that does not converge")
        return found[1]


def real_number(value: Value) -> Value:
    """A value as a number of mpmath."""
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def _add(first: Value, second: Value) -> Value:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first + second
    return real_number(first) + real_number(second)


def _mul(first: Value, second: Value) -> Value:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first * second
    if first == 0 or second == 0:
        if _is_infinite(first) or _is_infinite(second):
            raise UndefinedError("nought times infinity")
        return Fraction(0)
    return real_number(first) * real_number(second)


def _sized(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
            raise UndecidedError("a number that is too large")
    elif mp.isnan(value):
        raise UndefinedError("no number")
    return value


def _is_infinite(value: Value) -> bool:
    return not isinstance(value, Fraction) and bool(mp.isinf(value))


def _check_size(value: Value, largest: int) -> None:
    if not abs(real_number(value)) < largest:
        raise UndecidedError("an argument that is too large")


def _check_power(base: Value, exponent: Value) -> None:
    """Refuse a power that is too large to compute."""
    size = abs(mp.log(abs(real_number(base)))) * abs(real_number(exponent))
    if not size < 10_000_000:
        raise UndecidedError("a power that is too large")


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4096 or degree > 64:
        return None
    parts = []
    for part in (value.numerator, value.denominator):
        with mp.workdps(part.bit_length() // 3 + 20):
            root = int(mp.nint(mp.root(part, degree)))
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _choice(name: str, values: list[Value]) -> Value:
    if any(mp.im(real_number(v)) != 0 for v in values):
        raise UndefinedError(f"{name} of complex numbers")
    if name in ("max", "min"):
        return (max if name == "max" else min)(values, key=real_number)
    if not all(isinstance(v, Fraction) and v.denominator == 1 and v != 0 for v in values):
        raise UndefinedError(f"{name} of what is no whole number")
    return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, values)))


def _stepped(name: str, value: Value) -> Value:
    if not isinstance(value, Fraction) and (mp.im(value) != 0 or _is_infinite(value)):
        raise UndefinedError(f"{name} of that number")
    if name == "sgn":
        return Fraction((value > 0) - (value < 0))
    if isinstance(value, Fraction):
        return Fraction(value.__floor__() if name == "floor" else value.__ceil__())
    _check_size(value, 10**40)
    return Fraction(int(mp.floor(value) if name == "floor" else mp.ceil(value)))


# ---- comparison of values


def evaluate(node: Node) -> Value:
    """The value of an expression without variables.

    Raises:
        UndefinedError: it has none.
        UndecidedError: it is too large.
    """
    return Evaluation({}, real=False, budget=[STEPS]).value(node)


def near(first: Value, second: Value) -> bool:
    """Whether two values are equal in 50 digits."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    return close(first, second, EQUAL)


def is_less(first: Value, second: Value) -> bool:
    """Whether one real number is less than another."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first < second
    return bool(real_number(first) < real_number(second))


def is_about(first: Value, second: Value, place: Fraction) -> bool:
    """Whether two values differ by at most one in a decimal place, and by a twentieth."""
    difference = abs(combined(operator.sub, first, second))
    return close(first, second, _ABOUT) and not is_less(place, difference)


def combined(operation: Callable[[Value, Value], Value], first: Value, second: Value) -> Value:
    """A difference or quotient of two values, exact where both are."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return operation(first, second)
    return operation(real_number(first), real_number(second))


def close(first: Value, second: Value, tolerance: Fraction) -> bool:
    """Whether two values differ by at most a fraction of the larger one."""
    if _is_infinite(first) or _is_infinite(second):
        return bool(real_number(first) == real_number(second))
    one, other = real_number(first), real_number(second)
    return bool(abs(one - other) <= real_number(tolerance) * max(abs(one), abs(other)))
