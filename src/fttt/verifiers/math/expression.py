r"""Reads expressions: sums, products, powers, numbers, variables and brackets.

Operators have their usual precedence, and factors side by side are a product. Where TeX's own
conventions leave something open (the argument of ``\sin`` without brackets, ``1/2x``), the rules
are those of the field, and the second reading of a slash can be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from fttt.verifiers.math.notation import NotUnderstoodError, Token
from fttt.verifiers.math.symbols import ACCENTS, FIGURES, FUNCTIONS
from fttt.verifiers.math.tree import EXPRESSIONS, Node, constant, number
from fttt.verifiers.math.units import degree_of

__all__ = ["ExpressionReader"]

_DEEPEST = 30
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
_ALWAYS_FUNCTIONS = frozenset(
    ["f", "g", "h", "F", "G", "H", "O", "o"]
    + [f"\\{name}" for name in ("Theta", "Omega", "phi", "psi", "Phi", "Gamma", "zeta")]
)
"""Letters that take the brackets behind them as their argument, whatever stands in them."""
_STRUCTURES = frozenset({"matrix", "tuple"})


class ExpressionReader:
    """Reads expressions out of spans ``[low, high)`` of a list of tokens."""

    def __init__(self, tokens: tuple[Token, ...], *, tight: bool = False) -> None:
        """Match the brackets.

        Args:
            tokens: those of the whole answer.
            tight: whether ``1/2x`` is one over ``2x``.

        Raises:
            NotUnderstoodError: brackets that do not match.
        """
        self.tokens = tokens
        self.tight = tight
        self.ambiguous = False
        """Whether a slash was read that has a second reading."""
        self.partner = _partners(tokens)
        self.place = 0
        self.high = 0
        self.bars = 0
        self.depth = 0
        self.bound: list[str] = []

    def answer(self, low: int, high: int) -> Node:
        """What stands in brackets; the reader of whole answers says more."""
        return self.expression(low, high)

    def expression(self, low: int, high: int) -> Node:
        """The expression that fills the span."""
        for place in range(low, high):
            if self.tokens[place].command("choose", "over") and self.is_outside(low, place):
                parts = [self.expression(low, place), self.expression(place + 1, high)]
                return self.combine(
                    "binom" if self.tokens[place].text == "choose" else "div", parts
                )
        with self.span(low, high):
            node = self.sum()
            if self.place != high:
                raise NotUnderstoodError(
                    f"the {self.tokens[self.place].text!r} behind an expression"
                )
            return node

    @contextmanager
    def span(self, low: int, high: int) -> Iterator[None]:
        kept = self.place, self.high, self.bars
        self.place, self.high, self.bars = low, high, 0
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotUnderstoodError(f"more than {_DEEPEST} expressions in one another")
        yield
        self.place, self.high, self.bars = kept
        self.depth -= 1

    def is_outside(self, low: int, place: int) -> bool:
        """Whether a place is outside all brackets that begin at ``low`` or behind it."""
        return all(last < place for first, last in self.partner.items() if low <= first < place)

    # Looking ahead

    def token(self, ahead: int = 0) -> Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < self.high else None

    def sign(self, *texts: str, ahead: int = 0) -> bool:
        token = self.token(ahead)
        return token is not None and token.sign(*texts)

    def command(self, *texts: str, ahead: int = 0) -> bool:
        token = self.token(ahead)
        return token is not None and token.command(*texts)

    def enclosed(self) -> tuple[int, int]:
        """The span inside the bracket that stands next; the place moves behind it."""
        low, self.place = self.place + 1, self.partner[self.place] + 1
        if self.place > self.high:
            raise NotUnderstoodError("a bracket that is not closed")
        return low, self.place - 1

    # Operators

    def sum(self) -> Node:
        parts = [self.term()]
        while self.sign("+", "-") or self.command("pm", "mp"):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else self.combine("add", parts)

    def term(self) -> Node:
        """A product with its sign."""
        token = self.token()
        if token is not None and (token.sign("+", "-") or token.command("pm", "mp")):
            self.place += 1
            inner = self.term() if self.sign("+", "-") else self.product()
            if token.text == "+":
                return inner
            return self.combine({"-": "neg", "pm": "pm", "mp": "mp"}[token.text], [inner])
        return self.product()

    def product(self) -> Node:
        node = self.factor()
        while (token := self.token()) is not None:
            if token.sign("*"):
                self.place += 1
                node = self.multiplied(node, self.signed())
            elif token.sign("/"):
                self.place += 1
                below = self.signed()
                while self.starts_factor():
                    self.ambiguous = True
                    if not self.tight:
                        break
                    below = self.combine("mul", [below, self.factor()])
                node = self.combine("div", [node, below])
            elif token.command("mod"):
                self.place += 1
                node = self.combine("call", [node, self.factor()], "mod")
            elif self.starts_factor():
                node = self.multiplied(node, self.factor())
            else:
                break
        return node

    def multiplied(self, node: Node, factor: Node) -> Node:
        """The product of both; the factors of a long one stand side by side."""
        parts = node.args if node.head == "mul" else (node,)
        return self.combine("mul", [*parts, factor])

    def signed(self) -> Node:
        if self.sign("-"):
            self.place += 1
            return self.combine("neg", [self.signed()])
        return self.factor()

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor of a product without a sign."""
        token = self.token()
        if token is None:
            return False
        if token.kind == "number":
            before = self.tokens[self.place - 1]
            return before.sign(")", "]", "}", "rvert") and not before.sign("|")
        if token.kind == "sign":
            if token.text == "|":
                return self.bars == 0
            return token.text in ("(", "[", "{", "lfloor", "lceil", "lvert")
        if token.kind == "letter":
            return True
        return token.kind == "command" and _starts(token.text)

    def combine(self, head: str, parts: list[Node], data: object = None) -> Node:
        """A node of expressions; a number times a matrix is the matrix of its products."""
        matrices = [part for part in parts if part.head in _STRUCTURES]
        if matrices:
            return self.scaled(head, parts, matrices)
        parts = [_angle(part) for part in parts]
        for part in parts:
            if part.head not in EXPRESSIONS:
                raise NotUnderstoodError(f"a {part.head} in an expression")
        return Node(head, tuple(parts), data)  # type: ignore[arg-type]

    def scaled(self, head: str, parts: list[Node], matrices: list[Node]) -> Node:
        if len(matrices) > 1 or head not in ("mul", "div", "neg"):
            raise NotUnderstoodError("an expression of matrices")
        matrix = matrices[0]
        if matrix.head == "tuple" and matrix.data not in ("()", "<>"):
            raise NotUnderstoodError("a multiple of an interval")
        if head == "div" and parts[1] is matrix:
            raise NotUnderstoodError("a division by a matrix")
        cells = tuple(
            self.combine(head, [cell if part is matrix else part for part in parts])
            for cell in matrix.args
        )
        return Node(matrix.head, cells, matrix.data)

    def factor(self) -> Node:
        """A primary with its powers, factorials, percent and degree signs."""
        node = self.primary()
        while (token := self.token()) is not None:
            if token.sign("^"):
                self.place += 1
                node = self.raised(node)
            elif token.sign("!"):
                self.place += 1
                if self.sign("!"):
                    raise NotUnderstoodError("a double factorial")
                node = self.combine("fact", [node])
            elif token.sign("%"):
                self.place += 1
                node = self.combine("percent", [node])
            elif token.command("circ"):
                self.place += 1
                node = self.combine("degree", [node])
            else:
                break
        return node

    def raised(self, base: Node) -> Node:
        """``base`` to the power that stands next; a ring as a power is a degree sign."""
        token = self.token()
        if token is None:
            raise NotUnderstoodError("a power that is missing")
        inside = self.tokens[self.place : self.partner.get(self.place, self.place) + 1]
        core = [t for t in inside if not t.sign("{", "}")]
        if len(core) == 1 and core[0].command("circ"):
            self.place += len(inside)
            return self.combine("degree", [base])
        return self.combine("pow", [base, self.script()])

    def script(self) -> Node:
        """A subscript, power or bound: a group, or one sign and factor."""
        if self.sign("{"):
            return self.answer(*self.enclosed())
        if self.sign("-", "+"):
            minus = self.sign("-")
            self.place += 1
            inner = self.script()
            return self.combine("neg", [inner]) if minus else inner
        return self.primary()

    # Primaries

    def primary(self) -> Node:
        token = self.token()
        if token is None:
            raise NotUnderstoodError("an expression that is missing")
        if token.kind == "number":
            return self.number(token)
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "command":
            return self.named(token.text)
        if token.kind == "word":
            if token.text in FUNCTIONS and token.text not in ("min", "max"):
                return self.named(token.text)
            raise NotUnderstoodError(f"the word {token.text!r} in an expression")
        if token.text in ("(", "[", "{", "\\{", "langle"):
            return self.bracket(token.text)
        if token.text in ("|", "||"):
            return self.absolute(token.text)
        if token.text in ("lfloor", "lceil", "lvert"):
            inner = self.answer(*self.enclosed())
            if token.text == "lvert":
                return self.modulus(inner)
            name = "floor" if token.text == "lfloor" else "ceil"
            return self.combine("call", [inner], name)
        raise NotUnderstoodError(f"a {token.text!r} where an expression begins")

    def number(self, token: Token) -> Node:
        """A number; with a proper fraction behind it a mixed one."""
        value = token.value
        assert value is not None
        self.place += 1
        if "." in token.text or "e" in token.text.lower():
            return Node("decimal", data=value)
        part = self.proper_fraction()
        return number(value if part is None else value + part)

    def proper_fraction(self) -> Fraction | None:
        r"""The ``\frac{1}{2}`` or ``1/2`` of a mixed number, where that stands next."""
        if self.command("frac"):
            tokens = [self.token(n) for n in range(1, 7)]
            if any(t is None for t in tokens):
                return None
            shape = [t.text if t.kind == "sign" else t.kind for t in tokens if t is not None]
            places, length = (1, 4), 7
            if shape != ["{", "number", "}", "{", "number", "}"]:
                return None
        else:
            tokens = [self.token(n) for n in range(3)]
            if any(t is None for t in tokens) or not (tokens[0] and tokens[0].spaced):
                return None
            shape = [t.text if t.kind == "sign" else t.kind for t in tokens if t is not None]
            places, length = (0, 2), 3
            if shape != ["number", "/", "number"]:
                return None
        values = [t.value for n in places if (t := tokens[n]) is not None and t.value is not None]
        top, bottom = values
        if top.denominator != 1 or bottom.denominator != 1 or not 0 < top < bottom:
            return None
        self.place += length
        return top / bottom

    def letter(self, token: Token) -> Node:
        """A variable with its subscript and primes, a constant, or a function with its argument."""
        self.place += 1
        name = token.text
        indices: tuple[Node, ...] = ()
        if self.sign("_"):
            self.place += 1
            script, indices = self.subscript()
            name += script
        while self.sign("'"):
            self.place += 1
            name += "'"
        if self.sign("^") and self.token(1) is not None and self.prime():
            name += "'"
        if self.applies(token.text):
            return self.application(name, indices)
        if indices:
            return self.combine("index", list(indices), name)
        if name in ("e", "i") and name not in self.bound:
            return constant("e" if name == "e" else "i")
        return Node("var", data=name)

    def prime(self) -> bool:
        """Whether a prime stands as a power; the place moves behind it."""
        if self.sign("'", ahead=1):
            self.place += 2
            return True
        if self.sign("{", ahead=1) and self.sign("'", ahead=2) and self.sign("}", ahead=3):
            self.place += 4
            return True
        return False

    def subscript(self) -> tuple[str, tuple[Node, ...]]:
        """A subscript as part of a name, or as the index that it is where it has variables."""
        low, high = self.place, self.place + 1
        if self.sign("{"):
            low, high = self.enclosed()
        else:
            self.place += 1
            if high > self.high:
                raise NotUnderstoodError("a subscript that is missing")
        tokens = self.tokens[low:high]
        if all(t.kind in ("number", "word") or t.upright or t.sign(",") for t in tokens):
            return "_" + "".join(
                str(t.value) if t.value is not None else t.text for t in tokens
            ), ()
        inner = self.answer(low, high)
        parts = inner.args if inner.head == "list" else (inner,)
        return "", tuple(parts)

    def applies(self, letter: str) -> bool:
        """Whether the letter before takes the brackets that stand next as its argument."""
        if self.sign("^") and letter in _ALWAYS_FUNCTIONS:  # an inverse function
            shape = [self.token(n) for n in range(6)]
            texts = [t.text if t is not None else "" for t in shape]
            return texts[:5] == ["^", "{", "-", "1", "}"] and texts[5] == "("
        if self.sign("[") and letter == "E":
            return True
        if not self.sign("("):
            return False
        if letter in _ALWAYS_FUNCTIONS:
            return True
        inside = self.tokens[self.place + 1 : self.partner[self.place]]
        if any(t.sign(",", ";", "=", "|", "<", ">") or t.command("cap", "cup") for t in inside):
            return True
        return letter.isupper() and letter not in "NIRC" and len(inside) == 1

    def application(self, name: str, indices: tuple[Node, ...]) -> Node:
        if self.sign("^"):
            name += "^-1"
            self.place += 5
        low, high = self.enclosed()
        tokens = self.tokens[low:high]
        if any(t.sign("|") or t.kind == "word" for t in tokens):
            inner: tuple[Node, ...] = (Node("var", data=" ".join(t.text for t in tokens)),)
        else:
            node = self.answer(low, high)
            inner = node.args if node.head == "list" else (node,)
        if any(part.head not in EXPRESSIONS for part in inner):
            inner = (Node("var", data=repr(inner)),)
        return Node("apply", (*indices, *inner), name)

    def bracket(self, opening: str) -> Node:
        """An expression in brackets, or what else they hold."""
        closing = self.tokens[self.partner[self.place]].text
        low, high = self.enclosed()
        inner = self.answer(low, high)
        if opening == "{":
            return inner
        brackets = {"(": "(", "[": "[", "langle": "<"}[opening] + (
            ">" if closing == "rangle" else closing
        )
        if inner.head == "list" and inner.data in (",", ";"):
            return Node("tuple", inner.args, brackets)
        if inner.head == "list" or brackets not in ("()", "[]"):
            raise NotUnderstoodError(f"what stands between {brackets[0]} and {brackets[1]}")
        return inner

    def absolute(self, bar: str) -> Node:
        self.place += 1
        self.bars += 1
        inner = self.sum()
        if not self.sign(bar):
            raise NotUnderstoodError("a bar that is not closed")
        self.bars -= 1
        self.place += 1
        return self.modulus(inner) if bar == "|" else self.combine("apply", [inner], "norm")

    def modulus(self, inner: Node) -> Node:
        if inner.head == "matrix":
            return self.determinant(inner)
        return self.combine("abs", [inner])

    def determinant(self, matrix: Node) -> Node:
        rows, columns, _ = matrix.data
        if rows != columns or rows > 4:
            raise NotUnderstoodError("a determinant of that size")
        return _determinant([list(matrix.args[n * rows : (n + 1) * rows]) for n in range(rows)])

    def named(self, name: str) -> Node:
        """What begins with a command; the reader of commands knows them."""
        raise NotUnderstoodError(f"\\{name}")

    def split(self, low: int, high: int, *signs: str) -> list[tuple[int, int]]:
        """The spans between signs that stand outside all brackets."""
        spans, start, place = [], low, low
        while place < high:
            if self.tokens[place].sign(*signs):
                spans.append((start, place))
                start = place + 1
            place = self.partner.get(place, place) + 1
        spans.append((start, high))
        return spans


def _angle(node: Node) -> Node:
    """Degrees in brackets as the part of an expression that they are."""
    unit = node.data.unit if node.head == "quantity" else None
    return Node("degree", node.args) if unit == degree_of(None) else node


def _starts(name: str) -> bool:
    """Whether a factor may begin with that command."""
    return (
        name in FUNCTIONS
        or name in ACCENTS
        or name in FIGURES
        or name.startswith("begin ")
        or name in ("pi", "infty", "frac", "binom", "sum", "prod", "int", "lim", "det", "dots")
    )


def _partners(tokens: tuple[Token, ...]) -> dict[int, int]:
    """The place of the closing bracket of each opening one.

    Round and square brackets may close each other: ``(0, 1]`` is an interval.
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


def _determinant(rows: list[list[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    parts = []
    for column, cell in enumerate(rows[0]):
        minor = [[c for n, c in enumerate(row) if n != column] for row in rows[1:]]
        part = Node("mul", (cell, _determinant(minor)))
        parts.append(Node("neg", (part,)) if column % 2 else part)
    return Node("add", tuple(parts))
