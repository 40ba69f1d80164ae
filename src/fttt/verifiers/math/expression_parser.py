r"""Recursive-descent parser of expressions: sums, products, powers, functions and matrices.

Operators have their usual precedence, and adjacent factors are a product. Where TeX leaves the
structure open (the argument of ``\sin`` without brackets, ``1/2x``), the rules are the usual ones
of mathematics, and the other reading of a slash is available.
"""

from __future__ import annotations

from fractions import Fraction

from fttt.verifiers.math.lexer import (
    ACCENTS,
    ALIGNED,
    FIGURES,
    FUNCTIONS,
    NotUnderstoodError,
    Token,
    word_set,
)
from fttt.verifiers.math.syntax_tree import (
    EXPRESSIONS,
    Head,
    Node,
    combine,
    constant,
    determinant,
    elements,
    is_multiple_of_pi,
    is_numeric,
    match_brackets,
    number,
    outside,
)

__all__ = ["ExpressionParser"]

_DEEPEST = 30
_ALWAYS_FUNCTIONS = frozenset(
    ["f", "g", "h", "F", "G", "H", "O", "o"]
    + [f"\\{name}" for name in ("Theta", "Omega", "phi", "psi", "Phi", "Gamma", "zeta")]
)
"""Letters that are functions whenever brackets follow, whatever is in these."""
_STARTS = FUNCTIONS | ACCENTS | FIGURES | word_set("pi infty frac binom sum prod int lim det dots")
"""Commands that begin a factor."""
_SIGNED: dict[str, Head] = {"-": "neg", "pm": "pm", "mp": "mp"}
_FRACTION, _SLASH = ["{", "number", "}", "{", "number", "}"], ["number", "/", "number"]
_RELATIONS = ("=", "<", ">", "<=", ">=")
_PRIMES = (["^", "'"], ["^", "{", "'", "}"])
_INVERSE = ["^", "{", "-", "1", "}", "("]


class ExpressionParser:
    """Parses spans ``[low, high)`` of a list of tokens as expressions."""

    def __init__(self, tokens: tuple[Token, ...], *, tight: bool = False) -> None:
        """Match the brackets.

        Args:
            tokens: the tokens of the whole answer.
            tight: whether ``1/2x`` is one over ``2x``.

        Raises:
            NotUnderstoodError: brackets that do not match.
        """
        self.tokens = tokens
        self.tight = tight
        self.ambiguous = False
        """Whether an expression has a slash with two readings."""
        self.partner = match_brackets(tokens)
        self.place = self.high = self.bars = self.depth = 0
        self.bound: list[str] = []

    def answer(self, low: int, high: int) -> Node:
        """The content of brackets, which the parser of answers extends beyond expressions."""
        return self.expression(low, high)

    def expression(self, low: int, high: int) -> Node:
        """The expression that fills the span."""
        for place in range(low, high):
            token = self.tokens[place]
            if token.command("choose", "over") and place in self.outside(low, high):
                parts = [self.expression(low, place), self.expression(place + 1, high)]
                return combine("binom" if token.text == "choose" else "div", parts)
        kept = self.place, self.high, self.bars
        self.place, self.high, self.bars = low, high, 0
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotUnderstoodError(f"more than {_DEEPEST} expressions in one another")
        node = self.sum()
        if self.place != high:
            raise NotUnderstoodError(f"the {self.tokens[self.place].text!r} behind an expression")
        self.place, self.high, self.bars = kept
        self.depth -= 1
        return node

    def outside(self, low: int, high: int) -> list[int]:
        """The indices of tokens outside all brackets (:func:`outside`)."""
        return outside(self.partner, low, high)

    # Lookahead

    def token(self, ahead: int = 0) -> Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < self.high else None

    def sign(self, *texts: str) -> bool:
        token = self.token()
        return token is not None and token.sign(*texts)

    def command(self, *texts: str) -> bool:
        token = self.token()
        return token is not None and token.command(*texts)

    def texts(self, count: int) -> list[str]:
        """The texts of the next tokens."""
        return [token.text for token in self.tokens[self.place : self.high][:count]]

    def skip(self, *texts: str) -> bool:
        """Whether the next token is one of these signs; moves behind it."""
        found = self.sign(*texts)
        self.place += found
        return found

    def enclosed(self) -> tuple[int, int]:
        """The span inside the next bracket; moves behind it."""
        low, self.place = self.place + 1, self.partner[self.place] + 1
        if self.place > self.high:
            raise NotUnderstoodError("a bracket that is not closed")
        return low, self.place - 1

    # Operators

    def sum(self) -> Node:
        parts = [self.term()]
        while self.sign("+", "-") or self.command("pm", "mp"):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else combine("add", parts)

    def term(self) -> Node:
        """A product with its sign."""
        if not (self.sign("+", "-") or self.command("pm", "mp")):
            return self.product()
        head = _SIGNED.get(self.tokens[self.place].text)
        self.place += 1
        inner = self.term() if self.sign("+", "-") else self.product()
        return inner if head is None else combine(head, [inner])

    def product(self) -> Node:
        node = self.factor()
        while (token := self.token()) is not None:
            if self.skip("/"):
                below = self.signed()
                while self.starts_factor():
                    self.ambiguous = True
                    if not self.tight:
                        break
                    below = combine("mul", [below, self.factor()])
                node = combine("div", [node, below])
            elif token.command("mod"):
                self.place += 1
                node = combine("call", [node, self.factor()], "mod")
            elif token.sign("*") or self.starts_factor():
                factor = self.signed() if self.skip("*") else self.factor()
                factors = node.args if node.head == "mul" else (node,)
                node = combine("mul", [*factors, factor])
            else:
                break
        return node

    def signed(self) -> Node:
        return combine("neg", [self.signed()]) if self.skip("-") else self.factor()

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor without a sign of multiplication."""
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
        return token.kind == "command" and (
            token.text in _STARTS or token.text.startswith("begin ")
        )

    def factor(self) -> Node:
        """A primary with its powers, factorials, percent and degree signs."""
        node = self.primary()
        while (token := self.token()) is not None:
            if self.skip("^"):
                node = self.raised(node)
            elif self.skip("!"):
                if self.sign("!"):
                    raise NotUnderstoodError("a double factorial")
                node = combine("fact", [node])
            elif self.skip("%"):
                node = combine("percent", [node])
            elif token.command("circ"):
                self.place += 1
                node = combine("degree", [node])
            else:
                break
        return node

    def raised(self, base: Node) -> Node:
        """``base`` to the next power; a ring as a power is a degree sign."""
        token = self.token()
        if token is None:
            raise NotUnderstoodError("a power that is missing")
        inside = self.tokens[self.place : self.partner.get(self.place, self.place) + 1]
        core = [t for t in inside if not t.sign("{", "}")]
        if len(core) == 1 and core[0].command("circ"):
            self.place += len(inside)
            return combine("degree", [base])
        return combine("pow", [base, self.script()])

    def script(self) -> Node:
        """A subscript, power or bound: a group, or one sign and factor."""
        if self.sign("{"):
            return self.answer(*self.enclosed())
        if self.skip("-"):
            return combine("neg", [self.script()])
        return self.script() if self.skip("+") else self.primary()

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
            name = token.text[1:]
            return self.modulus(inner) if name == "vert" else combine("call", [inner], name)
        raise NotUnderstoodError(f"a {token.text!r} where an expression begins")

    def number(self, token: Token) -> Node:
        """A number, or a mixed number where a proper fraction follows."""
        value = token.value
        assert value is not None
        self.place += 1
        if "." in token.text or "e" in token.text.lower():
            return Node("decimal", data=value)
        part = self.proper_fraction()
        return number(value if part is None else value + part)

    def proper_fraction(self) -> Fraction | None:
        r"""The ``\frac{1}{2}`` or ``1/2`` of a mixed number, if it is next."""
        low = self.place + self.command("frac")
        shape = _FRACTION if low > self.place else _SLASH
        tokens = self.tokens[low : self.high][: len(shape)]
        spaced = low > self.place or (bool(tokens) and tokens[0].spaced)
        if not spaced or [t.text if t.kind == "sign" else t.kind for t in tokens] != shape:
            return None
        top, bottom = (token.value for token in tokens if token.value is not None)
        if top.denominator != 1 or bottom.denominator != 1 or not 0 < top < bottom:
            return None
        self.place = low + len(shape)
        return top / bottom

    def letter(self, token: Token) -> Node:
        """A variable with its subscript and primes, a constant, or a function with its argument."""
        self.place += 1
        name = token.text
        indices: tuple[Node, ...] = ()
        if self.skip("_"):
            script, indices = self.subscript()
            name += script
        while self.skip("'"):
            name += "'"
        for prime in _PRIMES:
            if self.texts(len(prime)) == prime:
                self.place += len(prime)
                name += "'"
                break
        if self.applies(token.text):
            return self.application(name, indices)
        if indices:
            return combine("index", list(indices), name)
        if name in ("e", "i") and name not in self.bound:
            return constant("e" if name == "e" else "i")
        return Node("var", data=name)

    def group(self) -> tuple[int, int]:
        """The span inside the next group, or of the next token; moves behind it."""
        if self.sign("{"):
            return self.enclosed()
        self.place += 1
        return self.place - 1, self.place

    def subscript(self) -> tuple[str, tuple[Node, ...]]:
        """A subscript: text of a name, or indices where it has variables."""
        low, high = self.group()
        if high > self.high:
            raise NotUnderstoodError("a subscript that is missing")
        tokens = self.tokens[low:high]
        if all(t.kind in ("number", "word") or t.upright or t.sign(",") for t in tokens):
            texts = (str(t.value) if t.value is not None else t.text for t in tokens)
            return f"_{''.join(texts)}", ()
        inner = self.answer(low, high)
        return "", inner.args if inner.head == "list" else (inner,)

    def applies(self, letter: str) -> bool:
        """Whether the letter is a function of the brackets that follow."""
        if self.sign("^") and letter in _ALWAYS_FUNCTIONS:  # an inverse function
            return self.texts(len(_INVERSE)) == _INVERSE
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
        """An expression in brackets, a tuple or an interval."""
        closing = self.tokens[self.partner[self.place]].text
        low, high = self.enclosed()
        inner = self.answer(low, high)
        if opening == "{":
            return inner
        brackets = opening.replace("langle", "<") + closing.replace("rangle", ">")
        if inner.head == "list" and inner.data in (",", ";"):
            return Node("tuple", inner.args, brackets)
        if inner.head == "list" or brackets not in ("()", "[]"):
            raise NotUnderstoodError(f"what stands between {brackets[0]} and {brackets[1]}")
        return inner

    def absolute(self, bar: str) -> Node:
        self.place += 1
        self.bars += 1
        inner = self.sum()
        if not self.skip(bar):
            raise NotUnderstoodError("a bar that is not closed")
        self.bars -= 1
        return self.modulus(inner) if bar == "|" else combine("apply", [inner], "norm")

    def modulus(self, inner: Node) -> Node:
        return determinant(inner) if inner.head == "matrix" else combine("abs", [inner])

    def named(self, name: str) -> Node:
        """An expression that begins with a command or the name of a function."""
        self.place += 1
        parse = {"sqrt": self.root, "frac": self.fraction, "lim": self.limit, "int": self.integral}
        if name in parse:
            return parse[name]()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty"):
            return constant("pi" if name == "pi" else "infty")
        if name == "binom":
            return combine("binom", [self.script(), self.script()])
        if name in ACCENTS:
            return self.accent(name)
        if name in FIGURES:
            letters = ""
            while (token := self.token()) is not None and token.kind == "letter":
                letters += token.text
                self.place += 1
            return Node("var", data=f"{name} {letters}")
        if name in ("sum", "prod"):
            return self.series(name)
        if name in ("dots", "emptyset"):
            return Node("dots" if name == "dots" else "set")
        if name.startswith("set "):
            return self.numbers(name[4:])
        if name.startswith("begin "):
            return self.environment(name[6:])
        if name in ("det", "Re", "Im", "arg", "deg", "dim", "Pr"):
            if name == "det" and self.command("begin matrix", "begin pmatrix", "begin bmatrix"):
                return determinant(self.primary())
            return combine("apply", [self.argument()], name)
        raise NotUnderstoodError(f"\\{name}")

    def numbers(self, letter: str) -> Node:
        """A set of numbers by its letter, with ``^+``, ``_{>0}`` and the like."""
        mark = ""
        while self.sign("^", "_"):
            low = self.place
            self.place += 2
            if self.tokens[low + 1].sign("{"):
                self.place = self.partner[low + 1] + 1
            mark += "".join(t.text for t in self.tokens[low : self.place] if not t.sign("{", "}"))
        marks = {"^+": "+", "_+": "+", "_>0": "+", "^-": "-", "_<0": "-", "_>=0": "0+", "": ""}
        if mark not in marks:
            raise NotUnderstoodError(f"numbers with {mark}")
        return Node("numbers", data=letter + marks[mark])

    def fraction(self) -> Node:
        texts = [token.text for token in self.tokens[self.place : self.place + 9]]
        if texts[:2] == ["{", "d"] and "d" in texts[3:6]:
            if texts[3:5] == ["}", "{"] and texts[5] == "d" and texts[7:8] == ["}"]:
                self.place += 8
                return Node("var", data=f"d{texts[2]}/d{texts[6]}")
            raise NotUnderstoodError("a derivative")
        return combine("div", [self.script(), self.script()])

    def root(self) -> Node:
        degree = self.expression(*self.enclosed()) if self.sign("[") else number(2)
        inside = self.script() if self.sign("{") else self.primary()
        return combine("root", [inside, degree])

    def accent(self, name: str) -> Node:
        r"""An accented letter as a name of its own; an arrow has no meaning."""
        if not self.sign("{"):
            raise NotUnderstoodError(f"\\{name}")
        low, high = self.enclosed()
        inside = self.tokens[low:high]
        if name == "vec" and len(inside) == 1 and inside[0].kind == "letter":
            return Node("var", data=inside[0].text)
        if all(token.kind in ("letter", "number") for token in inside):
            return Node("var", data=f"{name} {' '.join(token.text for token in inside)}")
        return combine("apply", [self.expression(low, high)], name)

    def function(self, name: str) -> Node:
        r"""A function with its power or base: ``\sin^2 x``, ``\sin^{-1} x``, ``\log_2 x``."""
        power: Node | None = None
        base: Node | None = None
        while self.sign("^", "_"):
            if self.skip("^"):
                power = self.script()
            elif self.skip("_"):
                base = self.script()
        if base is not None and name != "log":
            raise NotUnderstoodError(f"\\{name} with a subscript")
        arguments: list[Node] = []
        if name in ("max", "min", "gcd", "lcm") and self.sign("(", "\\{"):
            arguments = list(elements(self.answer(*self.enclosed())))
        if not arguments:
            arguments = [self.argument()]
        if base is not None:
            arguments.append(base)
        inverse = power is not None and power.head == "neg" and power.args[0] == number(1)
        if inverse and name[:3] in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return combine("call", arguments, f"arc{name}")
        node = combine("call", arguments, name)
        return node if power is None else combine("pow", [node, power])

    def argument(self) -> Node:
        """The argument of a function: the content of brackets, or the product that follows."""
        if self.sign("(", "[", "{"):
            return self.answer(*self.enclosed())
        if self.skip("-"):
            return combine("neg", [self.factor()])
        node = self.factor()
        symbolic = not is_numeric(node)
        while (token := self.token()) is not None and self.starts_factor():
            if token.kind == "command" and (token.text in FUNCTIONS - {"sqrt"}):
                break
            if token.sign("(", "[", "{") and symbolic:
                break
            part = self.factor()
            symbolic = symbolic or not is_numeric(part)
            node = combine("mul", [node, part])
        ahead = self.token(1) if self.sign("/") and is_multiple_of_pi(node) else None
        if ahead is not None and ahead.kind == "number":
            self.place += 1
            node = combine("div", [node, self.factor()])
        return node

    def scripts(self) -> tuple[tuple[int, int] | None, Node | None]:
        """The span below a big operator, and the expression above it."""
        below, above = None, None
        while self.sign("_", "^"):
            if self.skip("^"):
                above = self.script()
            elif self.skip("_"):
                below = self.group()
        return below, above

    def series(self, name: str) -> Node:
        below, above = self.scripts()
        if below is None or below[1] - below[0] < 3:
            raise NotUnderstoodError(f"\\{name} without its bounds")
        low, high = below
        variable, relation = self.tokens[low : low + 2]
        known = variable.kind == "letter" and relation.sign("=", ">=")
        if not known or (relation.text == "=") == (above is None):
            raise NotUnderstoodError(f"\\{name} with bounds of that kind")
        first = self.expression(low + 2, high)
        self.bound.append(variable.text)
        body = self.whole(self.product())
        self.bound.pop()
        last = self.whole(above or constant("infty"))
        return Node(name, (body, first, last), variable.text)  # type: ignore[arg-type]

    def whole(self, node: Node) -> Node:
        """The node, which must be an expression."""
        return combine("neg", [node]).args[0]

    def limit(self) -> Node:
        below, above = self.scripts()
        if below is None or above is not None:
            raise NotUnderstoodError("a limit without its bound")
        low, high = below
        arrow = low + 1
        if self.tokens[low].kind != "letter" or not self.tokens[arrow].command("to"):
            raise NotUnderstoodError("a limit of that kind")
        side = 0
        if high - arrow > 2 and self.tokens[high - 1].sign("+", "-"):
            side = 1 if self.tokens[high - 1].text == "+" else -1
            high -= 2 if self.tokens[high - 2].sign("^") else 1
        elif high - arrow > 4 and self.tokens[high - 2].sign("+", "-"):  # ^{+}
            side = 1 if self.tokens[high - 2].text == "+" else -1
            high -= 4
        target = self.expression(arrow + 1, high)
        name = self.tokens[low].text
        self.bound.append(name)
        body = self.whole(self.product())
        self.bound.pop()
        return Node("lim", (body, target, number(side)), name)

    def integral(self) -> Node:
        below, above = self.scripts()
        if below is None or above is None:
            raise NotUnderstoodError("an integral without its bounds")
        place = self.place
        while place < self.high - 1:
            token, after = self.tokens[place], self.tokens[place + 1]
            if token.kind == "letter" and token.text == "d" and after.kind == "letter":
                break
            place = self.partner.get(place, place) + 1
        else:
            raise NotUnderstoodError("an integral without its variable")
        name = self.tokens[place + 1].text
        self.bound.append(name)
        body = self.expression(self.place, place) if place > self.place else number(1)
        self.bound.pop()
        self.place = place + 2
        first = self.expression(*below)
        return Node("int", (self.whole(body), first, self.whole(above)), name)

    def environment(self, kind: str) -> Node:
        """A matrix, or rows of cases or of equations."""
        low, high = self.place, self.partner[self.place - 1]
        self.place = high + 1
        rows = [self.split(*row, "&") for row in self.split(low, high, "\\\\")]
        rows = [row for row in rows if any(first < last for first, last in row)]
        if not rows:
            raise NotUnderstoodError("an empty matrix")
        equations = kind in ("cases", "array") and all(
            len(row) == 1 and len(self.split(*row[0], *_RELATIONS)) > 1 for row in rows
        )
        if kind in ALIGNED or equations:
            parts = tuple(self.answer(row[0][0], row[-1][1]) for row in rows)
            return parts[0] if len(parts) == 1 else Node("list", parts, ",")
        if kind not in ("cases", "array", "smallmatrix") and not kind.endswith("matrix"):
            raise NotUnderstoodError(f"an environment {kind!r}")
        columns = max(len(row) for row in rows)
        if any(len(row) != columns for row in rows):
            raise NotUnderstoodError("a matrix with rows of different lengths")
        cells = tuple(self.answer(*cell) for row in rows for cell in row)
        node = Node("matrix", cells, (len(rows), columns, kind == "cases"))
        return determinant(node) if kind == "vmatrix" else node

    def split(self, low: int, high: int, *signs: str) -> list[tuple[int, int]]:
        """The spans between signs outside all brackets."""
        ends = [n for n in self.outside(low, high) if self.tokens[n].sign(*signs)]
        return list(zip([low, *(end + 1 for end in ends)], [*ends, high], strict=True))
