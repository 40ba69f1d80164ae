r"""Reads what begins with a command: functions, fractions, big operators, matrices."""

from __future__ import annotations

from fttt.verifiers.math.expression import ExpressionReader
from fttt.verifiers.math.notation import NotUnderstoodError
from fttt.verifiers.math.symbols import ACCENTS, ALIGNED, FIGURES, FUNCTIONS
from fttt.verifiers.math.tree import Node, constant, number

__all__ = ["CommandReader"]


class CommandReader(ExpressionReader):
    """Adds the commands to what an expression is made of."""

    def named(self, name: str) -> Node:
        """What begins with a command or the name of a function."""
        self.place += 1
        if name in FUNCTIONS:
            return self.root() if name == "sqrt" else self.function(name)
        if name in ("pi", "infty"):
            return constant("pi" if name == "pi" else "infty")
        if name == "frac":
            return self.fraction()
        if name == "binom":
            return self.combine("binom", [self.script(), self.script()])
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
        if name == "lim":
            return self.limit()
        if name == "int":
            return self.integral()
        if name == "dots":
            return Node("dots")
        if name.startswith("set "):
            return self.numbers(name[4:])
        if name == "emptyset":
            return Node("set")
        if name.startswith("begin "):
            return self.environment(name[6:])
        if name in ("det", "Re", "Im", "arg", "deg", "dim", "Pr"):
            if name == "det" and self.command("begin matrix", "begin pmatrix", "begin bmatrix"):
                return self.determinant(self.primary())
            return self.combine("apply", [self.argument()], name)
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
        first = self.tokens[self.place : self.place + 9]
        texts = [token.text for token in first]
        if texts[:2] == ["{", "d"] and "d" in texts[3:6]:
            if texts[3:5] == ["}", "{"] and texts[5] == "d" and texts[7:8] == ["}"]:
                self.place += 8
                return Node("var", data=f"d{texts[2]}/d{texts[6]}")
            raise NotUnderstoodError("a derivative")
        return self.combine("div", [self.script(), self.script()])

    def root(self) -> Node:
        degree = self.expression(*self.enclosed()) if self.sign("[") else number(2)
        inside = self.script() if self.sign("{") else self.primary()
        return self.combine("root", [inside, degree])

    def accent(self, name: str) -> Node:
        r"""An accented letter is a name of its own; an arrow changes nothing."""
        if not self.sign("{"):
            raise NotUnderstoodError(f"\\{name}")
        low, high = self.enclosed()
        inside = self.tokens[low:high]
        if name == "vec" and len(inside) == 1 and inside[0].kind == "letter":
            return Node("var", data=inside[0].text)
        if all(token.kind in ("letter", "number") for token in inside):
            return Node("var", data=f"{name} {' '.join(token.text for token in inside)}")
        return self.combine("apply", [self.expression(low, high)], name)

    def function(self, name: str) -> Node:
        r"""A function with its power or base: ``\sin^2 x``, ``\sin^{-1} x``, ``\log_2 x``."""
        power: Node | None = None
        base: Node | None = None
        while self.sign("^", "_"):
            raises = self.sign("^")
            self.place += 1
            if raises:
                power = self.script()
            else:
                base = self.script()
        if base is not None and name != "log":
            raise NotUnderstoodError(f"\\{name} with a subscript")
        arguments = list(self.arguments() if name in ("max", "min", "gcd", "lcm") else ())
        if not arguments:
            arguments = [self.argument()]
        if base is not None:
            arguments.append(base)
        inverse = power is not None and power.head == "neg" and power.args[0] == number(1)
        if inverse and name[:3] in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return self.combine("call", arguments, f"arc{name}")
        node = self.combine("call", arguments, name)
        return node if power is None else self.combine("pow", [node, power])

    def arguments(self) -> tuple[Node, ...]:
        if not self.sign("(", "\\{"):
            return ()
        inner = self.answer(*self.enclosed())
        return inner.args if inner.head in ("list", "set") else (inner,)

    def argument(self) -> Node:
        """The argument of a function: what is in brackets, or the product that follows."""
        if self.sign("(", "[", "{"):
            return self.answer(*self.enclosed())
        if self.sign("-"):
            self.place += 1
            return self.combine("neg", [self.factor()])
        node = self.factor()
        symbolic = not _is_numeric(node)
        while (token := self.token()) is not None and self.starts_factor():
            if token.kind == "command" and (token.text in FUNCTIONS - {"sqrt"}):
                break
            if token.sign("(", "[", "{") and symbolic:
                break
            part = self.factor()
            symbolic = symbolic or not _is_numeric(part)
            node = self.combine("mul", [node, part])
        ahead = self.token(1)
        if self.sign("/") and ahead is not None and ahead.kind == "number" and _is_pi(node):
            self.place += 1
            node = self.combine("div", [node, self.factor()])
        return node

    def scripts(self) -> tuple[tuple[int, int] | None, Node | None]:
        """The span below a big operator, and what stands above it."""
        below, above = None, None
        while self.sign("_", "^"):
            under = self.sign("_")
            self.place += 1
            if not under:
                above = self.script()
            elif self.sign("{"):
                below = self.enclosed()
            else:
                below = (self.place, self.place + 1)
                self.place += 1
        return below, above

    def series(self, name: str) -> Node:
        below, above = self.scripts()
        if below is None or below[1] - below[0] < 3:
            raise NotUnderstoodError(f"\\{name} without its bounds")
        low, high = below
        variable, relation = self.tokens[low], self.tokens[low + 1]
        if variable.kind != "letter" or not (relation.sign("=") or relation.sign(">=")):
            raise NotUnderstoodError(f"\\{name} with bounds of that kind")
        if (relation.text == "=") == (above is None):
            raise NotUnderstoodError(f"\\{name} with bounds of that kind")
        first = self.expression(low + 2, high)
        self.bound.append(variable.text)
        body = self.product()
        self.bound.pop()
        last = above if above is not None else constant("infty")
        return Node(name, (self.whole(body), first, self.whole(last)), variable.text)  # type: ignore[arg-type]

    def whole(self, node: Node) -> Node:
        """The node, where it is an expression."""
        return self.combine("neg", [node]).args[0]

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
        body = self.product()
        self.bound.pop()
        return Node("lim", (self.whole(body), target, number(side)), name)

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
        single = kind in ("cases", "array") and all(len(row) == 1 for row in rows)
        if kind in ALIGNED or (single and self.are_equations(rows)):
            parts = tuple(self.answer(row[0][0], row[-1][1]) for row in rows)
            return parts[0] if len(parts) == 1 else Node("list", parts, ",")
        if kind not in ("cases", "array", "smallmatrix") and not kind.endswith("matrix"):
            raise NotUnderstoodError(f"an environment {kind!r}")
        columns = max(len(row) for row in rows)
        if any(len(row) != columns for row in rows):
            raise NotUnderstoodError("a matrix with rows of different lengths")
        cells = tuple(self.answer(*cell) for row in rows for cell in row)
        node = Node("matrix", cells, (len(rows), columns, kind == "cases"))
        return self.determinant(node) if kind == "vmatrix" else node

    def are_equations(self, rows: list[list[tuple[int, int]]]) -> bool:
        """Whether every row has a sign of equality or order outside all brackets."""
        signs = ("=", "<", ">", "<=", ">=")
        return all(len(self.split(*row[0], *signs)) > 1 for row in rows)


def _is_numeric(node: Node) -> bool:
    return node.head in ("number", "decimal") or (
        node.head in ("div", "mul", "neg", "root") and all(_is_numeric(arg) for arg in node.args)
    )


def _is_pi(node: Node) -> bool:
    """Whether the node is a rational multiple of pi, or a number."""
    if node.head == "mul":
        return all(_is_pi(arg) for arg in node.args)
    return _is_numeric(node) or node == constant("pi")
