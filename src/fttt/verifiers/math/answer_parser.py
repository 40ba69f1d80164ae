r"""Parser of answers: the syntax tree of a whole answer, or the reason why it has none.

An answer is split at its separators (``,``, ``;``, "and", "or"), each part at its relations (``=``,
``<``, ``\in``), each side at its set operations and colons. The rest is an expression, perhaps with
a unit of measurement, a currency or words around it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from fttt.verifiers.math.expression_parser import ExpressionParser
from fttt.verifiers.math.lexer import (
    FUNCTIONS,
    Commas,
    NotUnderstoodError,
    Token,
    scan,
    word_set,
)
from fttt.verifiers.math.syntax_tree import (
    EXPRESSIONS,
    NEGATIVES,
    Name,
    Node,
    name_of,
    names_of,
    number,
    with_round_brackets,
    words_of,
)
from fttt.verifiers.math.units import (
    Suffix,
    UnitLetters,
    currency,
    degree_of,
    is_count,
    read_suffix,
    suffix_start,
    word_at,
)

__all__ = ["readings"]

_SEPARATORS = (",", ";", "\\\\")
_QUANTIFIERS = word_set("all any every each real")
_RELATIONS = {"=", "!=", "<", ">", "<=", ">="}
_RELATION_COMMANDS = {"approx": "~", "in": "in", "notin": "notin", "equiv": "=="}
_SET_OPERATIONS = {"cup": "union", "cap": "inter", "setminus": "minus"}
_VERBS = word_set("is are was be equals equal gives yields becomes")
_BEFORE = word_set(
    "exactly just only answer therefore thus so hence either both final total result value the "
    "correct choice option"
)
"""Words before an answer that have no influence on its value."""
_CURRENCIES = {"usd": "USD", "us": "USD", "eur": "EUR", "gbp": "GBP", "rs": "INR", "inr": "INR"}
_ROUGHLY = word_set("approximately about around roughly nearly almost circa approx")
"""Words before a value that is rounded."""
_ALL_REALS = re.compile(
    r"(?:(?:all|any|every|the|set of|of) )*(?:(?:real numbers?|reals?)(?: numbers?)?|real values?)"
)
_BASED = re.compile(r"(-?)([0-9A-Z]+(?:\.[0-9A-Z]+)?)_\(?(\d+)\)?")
_BASE_WORDS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_BASE_WORDS |= {"eight": "8", "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}
_CLOCK = re.compile(r"\d{1,2}(?::[0-5]\d){1,2}")
_GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_UNSPACED = re.compile(r",(?!\s|\\[ ,;:]|\d{3}(?!\d))|,(?<=[^\d],)\d{3}(?!\d)")
"""Commas neither before a space nor between groups of digits."""
_POINTS = 2
"""Adjacent letters that name a segment."""


@lru_cache(maxsize=1024)
def readings(text: str, units: UnitLetters = "marked") -> tuple[Node, ...]:
    """The syntax trees of an answer: more than one where its notation is ambiguous.

    A slash before a product (``1/2x``) and commas between groups of three digits (``100,200``)
    have two readings.

    Raises:
        NotUnderstoodError: the answer has no tree.
    """
    found: list[Node] = []
    failures: list[NotUnderstoodError] = []

    def read(*, tight: bool = False, commas: Commas = "outside") -> bool:
        try:
            tree, ambiguous = _parse(text, units, tight=tight, commas=commas)
        except NotUnderstoodError as error:
            failures.append(error)
            return False
        found.append(tree)
        return ambiguous

    if read():
        read(tight=True)
    if _GROUPS.search(text):
        read(commas="never")
        if not _UNSPACED.search(text) and ("," in _GROUPS.sub("", text) or not found):
            read(commas="everywhere")
    if not found:
        raise failures[0]
    return tuple(dict.fromkeys(found))


def _parse(
    text: str, units: UnitLetters, *, tight: bool = False, commas: Commas = "outside"
) -> tuple[Node, bool]:
    try:
        return _parse_once(text, units, tight=tight, commas=commas)
    except RecursionError:
        raise NotUnderstoodError("an expression that is too deep") from None
    except IndexError:  # a lookahead behind the last token
        raise NotUnderstoodError("an answer that ends too early") from None


def _parse_once(text: str, units: UnitLetters, *, tight: bool, commas: Commas) -> tuple[Node, bool]:
    tokens = scan(text, commas=commas)
    if len(tokens) > 1 and tokens[0].kind == "letter" and tokens[1].sign(")"):  # "E) a wheel"
        tokens = (tokens[0], Token("sign", ":"), *tokens[2:])
    try:
        parser = _AnswerParser(tokens, units, tight=tight)
    except NotUnderstoodError:
        parser = _AnswerParser(with_round_brackets(tokens), units, tight=tight)
    return parser.answer(0, len(tokens)), parser.ambiguous


class _AnswerParser(ExpressionParser):
    """Parses spans of tokens as whole answers."""

    def __init__(self, tokens: tuple[Token, ...], units: UnitLetters, *, tight: bool) -> None:
        super().__init__(tokens, tight=tight)
        self.units = units

    def word(self, place: int) -> str:
        return word_at(self.tokens, place)

    # Lists

    def answer(self, low: int, high: int) -> Node:
        """The answer in the span: a list of parts, or its only part."""
        low, high = self.trimmed(low, high)
        high = self.without_quantifier(low, high)
        arrows = [n for n in self.outside(low, high) if self.tokens[n].command("Rightarrow")]
        if arrows:
            low = arrows[-1] + 1
        if low >= high:
            raise NotUnderstoodError("an empty answer")
        if self.tokens[low].sign("<") and self.tokens[high - 1].sign(">"):
            return self.value(low, high)
        found = self.special(low, high)
        if found is not None:
            return found
        spans, joints = self.parts(low, high)
        if len(spans) == 1:
            return self.part(*spans[0])
        parts = [self.part(*span) for span in spans]
        mixed = self.mixed_quantity(parts)
        if mixed is not None:
            return mixed
        joint = joints.pop() if len(joints) == 1 else "or" if "or" in joints else ","
        if joint in ("\\\\", ";"):
            joint = ","
        return Node("list", tuple(parts), joint)

    def trimmed(self, low: int, high: int) -> tuple[int, int]:
        """The span without punctuation at its ends."""
        while low < high and self.tokens[low].sign(".", ",", ";", ":", "=", "\\\\"):
            low += 1
        while low < high and self.tokens[high - 1].sign(".", ",", ";", ":", "\\\\", "?"):
            high -= 1
        return low, high

    def without_quantifier(self, low: int, high: int) -> int:
        """The end of the span without ``for all x`` behind it."""
        for place in self.outside(low, high)[1:]:
            if self.word(place) == "for" and self.word(place + 1) in _QUANTIFIERS:
                while self.tokens[place - 1].sign(",", ";", "(", ":"):
                    place -= 1
                return place
        return high

    def parts(self, low: int, high: int) -> tuple[list[tuple[int, int]], set[str]]:
        """The spans between separators, and the separators."""
        spans, joints, start = [], set(), low
        for place in [*self.outside(low, high), high]:
            if place < high:
                word = self.word(place)
                sign = self.tokens[place]
                if place > start and self.is_condition(place):
                    spans += [(start, place), (place + 1, self.partner[place])]
                    joints.add(",")
                    start = self.partner[place] + 1
                    continue
                if not sign.sign(*_SEPARATORS) and word not in ("and", "or", "where"):
                    continue
                joint = word or sign.text
            first, last = self.trimmed(start, place)
            silent = place < high and all(self.word(n) in _BEFORE for n in range(first, last))
            if first < last and not silent:
                spans.append((start, place))
                if place < high:
                    joints.add("," if joint == "where" else joint)
            elif first == last and place < high and joint in ("and", "or"):  # ", and"
                joints.discard(",")
                joints.add(joint)
            start = place + 1
        return spans, joints

    def is_condition(self, place: int) -> bool:
        """Whether brackets hold the domain of a variable: ``2k\\pi (k \\in \\mathbb{Z})``."""
        if not self.tokens[place].sign("("):
            return False
        return self.tokens[place + 2].command("in") and self.tokens[place + 1].kind == "letter"

    # Answers without mathematics

    def special(self, low: int, high: int) -> Node | None:
        """A choice by its letter, a number with its base, a time, words; ``None`` for the rest."""
        return (
            self.choice(low, high)
            or self.based(low, high)
            or self.time(low, high)
            or self.words(low, high)
        )

    def choice(self, low: int, high: int) -> Node | None:
        r"""``\text{(E)}``, ``(E)``, and ``E: A wheel turns twice``."""
        span = self.tokens[low:high]
        while span and span[0].kind == "word" and span[0].text.lower() in ("option", "choice"):
            span = span[1:]
        bracket = bool(span) and span[0].sign("(")
        span = span[1:] if bracket else span
        if not span or span[0].kind != "letter" or not "A" <= span[0].text <= "J":
            return None
        letter, rest = span[0], span[1:]
        separator = rest[:1]
        if bracket != bool(separator and separator[0].sign(")")):
            return None
        rest = rest[1:]
        if any(t.kind == "letter" and t.text.isupper() for t in rest[:1]) and len(rest) < 2:
            return None  # "A: B"
        if rest and (self.word(high - len(rest)) in ("and", "or") or rest[0].sign(",")):
            return None
        if bracket or (separator and separator[0].sign(":", ".")):
            return self.chosen(letter, high - len(rest), high) if letter.upright or rest else None
        return Node("choice", data=letter.text) if letter.upright and not separator else None

    def chosen(self, letter: Token, low: int, high: int) -> Node:
        """A choice with the answer behind its letter, if that can be parsed."""
        try:
            inner = (self.answer(low, high),) if low < high else ()
        except NotUnderstoodError:
            inner = ()
        return Node("choice", inner, letter.text)

    def based(self, low: int, high: int) -> Node | None:
        tokens = [t for t in self.tokens[low:high] if not t.sign("{", "}") and self.no_base(t)]
        text = "".join(_BASE_WORDS.get(t.text.lower(), t.text) for t in tokens)
        match = _BASED.fullmatch(text)
        if match is None and self.word(high - 2) == "base":
            tokens = [*tokens[:-1], Token("sign", "_"), tokens[-1]]
            match = _BASED.fullmatch("".join(t.text for t in tokens))
        if match is None or not (match[2][0].isdigit() or len(match[2]) > 1):
            return None
        return Node("based", data=(match[1] + (match[2].lstrip("0") or "0"), int(match[3])))

    @staticmethod
    def no_base(token: Token) -> bool:
        return not (token.kind == "word" and token.text.lower() in ("base", "in"))

    def time(self, low: int, high: int) -> Node | None:
        half = self.word(high - 1)
        high -= half in ("am", "pm")
        tokens = self.tokens[low:high]
        text = "".join(t.text for t in tokens)
        if half in ("am", "pm") and re.fullmatch(r"\d{1,2}", text):
            text += ":00"
        if not _CLOCK.fullmatch(text) or (len(tokens) == 1 and half not in ("am", "pm")):
            return None
        numbers = tuple(int(part) for part in text.split(":"))
        if half not in ("am", "pm"):
            half = "clock" if re.search(r"(?:^|:)0", text) else ""
        return Node("time", data=(numbers, half))

    def words(self, low: int, high: int) -> Node | None:
        """An answer in words, or a name in capitals; "all real numbers" is a set."""
        span = self.tokens[low:high]
        text = words_of(span)
        reals = _ALL_REALS.match(text)
        if reals is not None:
            rest = text[reals.end() :].split()
            if not rest and all(t.kind == "word" for t in span):
                return Node("numbers", data="R")
            if rest and rest[0] in ("except", "but", "other") and span[-1].value is not None:
                hole = self.special_end(low, high)
                return Node("minus", (Node("numbers", data="R"), Node("set", hole)))
        capitals = len(span) >= _POINTS and all(
            t.kind == "letter" and t.text.isupper() and not (n and t.spaced)
            for n, t in enumerate(span)
        )
        plain = all(t.kind == "word" or t.upright or t.sign(".", "-", "'") for t in span)
        plain = plain and not any(t.sign(",", ";") for t in span)
        if any(self.word(n) in ("and", "or") for n in self.outside(low, high)):
            return None
        verbs = [n for n in range(low, high) if self.word(n) in _VERBS]
        if verbs and plain and all(self.word(n) in _BEFORE for n in range(low, verbs[0])):
            return self.part(verbs[0] + 1, high)
        numbers = any(t.kind == "number" for t in span)  # "5 apples"
        if capitals or (plain and any(t.kind == "word" for t in span) and not numbers):
            return Node("text", data=text.replace(" ", "") if capitals else text)
        return None

    def special_end(self, low: int, high: int) -> tuple[Node, ...]:
        """The numbers behind the last word of the span."""
        last = max(n for n in range(low, high) if self.tokens[n].kind == "word")
        inner = self.answer(last + 1, high)
        return inner.args if inner.head in ("list", "named") else (inner,)

    def phrase(self, low: int, high: int) -> Node:
        """Words and numbers that are more than a value, to be compared as words."""
        return Node("text", data=words_of(self.tokens[low:high]))

    # Relations

    def part(self, low: int, high: int) -> Node:
        """A part of a list: a relation, a statement of membership, or a value."""
        low, high = self.trimmed(low, high)
        if low >= high:
            raise NotUnderstoodError("an empty part")
        modulus = self.congruence(low, high)
        if modulus is not None:
            return modulus
        words = [n for n in self.outside(low, high) if self.word(n) == "to"]
        if len(words) == 1 and words[0] - low == 1 and high - words[0] == 2:
            numbers = self.tokens[low], self.tokens[high - 1]
            if all(token.kind == "number" for token in numbers):
                return Node("ratio", (self.value(low, low + 1), self.value(high - 1, high)))
        spans, signs = self.sides(low, high)
        if len(spans) == 1:
            return self.special(low, high) or self.side(low, high)
        if spans[0][0] == spans[0][1] and signs[0] in ("=", "~"):  # "= 5"
            first, *signs = signs
            spans = spans[1:]
            if len(spans) == 1:
                return _rounded(self.side(*spans[0])) if first == "~" else self.side(*spans[0])
        if "in" in signs or "notin" in signs:
            if signs != ["in"]:
                raise NotUnderstoodError("a membership of that kind")
            name, inside = name_of(self.tokens, self.partner, *spans[0]), self.side(*spans[1])
            if inside.head in EXPRESSIONS - {"var"}:
                raise NotUnderstoodError("a member of a number")
            return Node("member", (inside,), name)
        if set(signs) <= {"=", "~"}:
            return self.equation(spans, signs)
        return Node("relation", tuple(self.subject(*span) for span in spans), tuple(signs))

    def sides(self, low: int, high: int) -> tuple[list[tuple[int, int]], list[str]]:
        spans, signs, start = [], [], low
        if self.tokens[low].sign("<") and self.tokens[high - 1].sign(">"):
            return [(low, high)], []  # a vector
        for place in self.outside(low, high):
            token = self.tokens[place]
            sign = token.text if token.kind == "sign" and token.text in _RELATIONS else ""
            if token.kind == "command":
                sign = _RELATION_COMMANDS.get(token.text, "")
            if sign:
                spans.append((start, place))
                signs.append(sign)
                start = place + 1
        spans.append((start, high))
        return spans, signs

    def subject(self, low: int, high: int) -> Node:
        """A side of an inequality: an expression, or a name as a variable."""
        name = name_of(self.tokens, self.partner, low, high)
        if name is not None and name.kind == "function":
            return Node("var", data=f"{name.text}({','.join(name.params)})")
        if name is not None and name.kind != "var":
            return Node("var", data=name.text)
        return self.side(low, high)

    def equation(self, spans: list[tuple[int, int]], signs: list[str]) -> Node:
        """Names with their values, or an equation between expressions."""
        names = [name_of(self.tokens, self.partner, *span) for span in spans]
        values = [self.side(*s) for s, name in zip(spans, names, strict=True) if name is None]
        known = [name for name in names if name is not None]
        if known and values and not any(_occurs(name, value) for name in known for value in values):
            return Node("named", tuple(values), (tuple(known), "~" in signs))
        if any(name is not None and name.kind == "words" for name in names):
            raise NotUnderstoodError("an equation of words")
        sides = tuple(self.subject(*span) for span in spans)
        return Node("relation", sides, tuple(signs))

    def congruence(self, low: int, high: int) -> Node | None:
        r"""``7 \pmod{10}`` and ``7 (mod 10)``."""
        for place in self.outside(low, high)[1:]:
            token = self.tokens[place]
            if token.command("pmod"):
                modulus = self.expression(place + 1, high)
            elif token.sign("(") and self.tokens[place + 1].text.lower() in ("mod", "modulo"):
                if self.partner[place] != high - 1:
                    return None
                modulus = self.expression(place + 2, high - 1)
            else:
                continue
            spans, signs = self.sides(low, place)
            if len(spans) > 2 or not set(signs) <= {"=", "=="}:
                raise NotUnderstoodError("a congruence of that kind")
            names = [name_of(self.tokens, self.partner, *span) for span in spans[:-1]]
            if None in names:
                raise NotUnderstoodError("a congruence of that kind")
            return Node("mod", (self.expression(*spans[-1]), modulus))
        return None

    # Sides

    def side(self, low: int, high: int) -> Node:
        """A value with the words around it: a quantity, a count, a set, a ratio."""
        low, high = self.trimmed(low, high)
        start = low
        unit: Suffix | None = None
        verbs = [n for n in self.outside(low, high) if self.word(n) in _VERBS][:1]
        if verbs and all(
            t.kind in ("word", "letter") and t.text not in NEGATIVES
            for t in self.tokens[low : verbs[0]]
        ):
            low = verbs[0] + 1
        while low < high and self.word(low) and self.word(low) not in FUNCTIONS:
            word = self.word(low)
            verbs = [
                n
                for n in self.outside(low, high)
                if self.word(n) in _VERBS or self.tokens[n].sign(":")
            ]
            if word in _CURRENCIES:
                unit = Suffix(unit=currency(_CURRENCIES[word]))
                low += 1
                low += low < high and self.tokens[low].sign(".")
            elif verbs and not any(self.word(n) in NEGATIVES for n in range(low, verbs[0])):
                low = verbs[0] + 1
            elif word in _ROUGHLY:
                return _rounded(self.side(low + 1, high))
            elif word in _BEFORE:
                low += 1
            else:
                return self.phrase(start, high)
        if low >= high:
            return self.phrase(start, high)
        if start < low:
            special = self.special(low, high)
            if special is not None:
                return special
        node = self.measure(low, high, unit)
        return self.phrase(start, high) if node is None else node

    def value(self, low: int, high: int) -> Node:
        """Set operations, ratios, or an expression."""
        if low >= high:
            raise NotUnderstoodError("a value that is missing")
        places = self.outside(low, high)
        operations = [n for n in places if self.tokens[n].command(*_SET_OPERATIONS)]
        if not operations and self.tokens[low].text.startswith("set "):
            operations = [  # "R - {0}"
                n
                for n in self.outside(low, high - 1)
                if self.tokens[n].sign("-") and self.tokens[n + 1].sign("\\{")
            ]
        if operations:
            node = self.value(low, operations[0])
            for place, end in zip(operations, [*operations[1:], high], strict=True):
                head = _SET_OPERATIONS.get(self.tokens[place].text, "minus")
                node = Node(head, (node, self.value(place + 1, end)))  # type: ignore[arg-type]
            return node
        ratio = self.split(low, high, ":")
        if len(ratio) > 1:
            return Node("ratio", tuple(self.expression(*span) for span in ratio))
        if self.tokens[low].sign("<") and self.tokens[high - 1].sign(">"):
            inner = self.answer(low + 1, high - 1)
            if inner.head != "list":
                raise NotUnderstoodError("an inequality without its sides")
            return Node("tuple", inner.args, "<>")
        return self.expression(low, high)

    def bracket(self, opening: str) -> Node:
        if opening != "\\{":
            return super().bracket(opening)
        return self.set(*self.enclosed())

    def set(self, low: int, high: int) -> Node:
        r"""The set between braces: its elements, or ``\{x \mid \ldots\}``."""
        if low >= high:
            return Node("set")
        bars = [n for n in self.outside(low, high) if self.tokens[n].sign("|", ":")]
        for bar in bars[:1]:
            name = name_of(self.tokens, self.partner, low, bar)
            head = self.part(low, bar) if name is None else None
            conditions = self.answer(bar + 1, high)
            listed = conditions.args if conditions.head == "list" else (conditions,)
            joint = conditions.data if conditions.head == "list" else "and"
            if head is not None and head.head == "member" and head.data is not None:
                return Node("builder", (head, *listed), (head.data, joint))
            if name is not None:
                return Node("builder", listed, (name, joint))
            if head is not None and (head.head in EXPRESSIONS or head.head == "tuple"):
                return Node("family", (head, *listed))
            raise NotUnderstoodError("a set of that kind")
        inner = self.answer(low, high)
        return Node("set", inner.args if inner.head == "list" else (inner,))

    # Quantities

    def measure(self, low: int, high: int, unit: Suffix | None) -> Node | None:
        """An expression, its currency and the words behind it; ``None`` for other words."""
        signs = [n for n in self.outside(low, high) if self.tokens[n].text.startswith("currency ")]
        if signs:
            return self.money(low, signs[0], high)
        temperature = self.temperature(low, high)
        if temperature is not None:
            return temperature
        end = suffix_start(self.tokens, self.partner, low, high, self.units)
        value = self.value(low, end)
        if end < high:
            return self.with_suffix(value, unit, end, high) if value.head in EXPRESSIONS else None
        if unit is not None:
            return Node("quantity", (value,), unit) if value.head in EXPRESSIONS else None
        if value.head == "degree":
            return Node("quantity", value.args, Suffix(unit=degree_of(None)))
        return value

    def money(self, low: int, sign: int, high: int) -> Node | None:
        """A value with the sign of a currency before or behind it."""
        unit = Suffix(unit=currency(self.tokens[sign].text.removeprefix("currency ")))
        if sign == low:
            return self.measure(low + 1, high, unit)
        if sign == high - 1:
            return Node("quantity", (self.value(low, sign),), unit)
        if sign > low + 1 or not self.tokens[low].sign("-"):
            raise NotUnderstoodError("a currency within an expression")
        inner = self.measure(sign + 1, high, unit)  # "-$5"
        if inner is None or inner.head != "quantity":
            return None
        return Node("quantity", (Node("neg", inner.args),), inner.data)

    def with_suffix(self, value: Node, unit: Suffix | None, low: int, high: int) -> Node | None:
        """A value and the unit or things behind it."""
        after = next((n for n in range(low + 1, high) if is_count(self.tokens, n)), high)
        suffix = read_suffix(self.tokens[low:after], unit.unit if unit is not None else None)
        if suffix is None:
            return None
        if suffix.factor != 1:
            value = Node("mul", (value, number(suffix.factor)))
            suffix = Suffix(Fraction(1), suffix.unit, suffix.things)
        if suffix.unit is not None and suffix.unit.powers == (("%", 1),):
            return Node("percent", (value,))
        node = Node("quantity", (value,), suffix)
        if after == high:
            return node
        rest = self.measure(after, high, None)  # "5 feet 6 inches"
        return None if rest is None else self.mixed_quantity([node, rest])

    def temperature(self, low: int, high: int) -> Node | None:
        """Degrees of Celsius or Fahrenheit."""
        last = self.tokens[high - 1]
        before = [t for t in self.tokens[low : high - 1] if not t.sign("{", "}")]
        if last.text not in ("C", "F") or len(before) < 3 or not before[-1].command("circ"):
            return None
        node = self.expression(low, high - 1)
        if node.head != "degree":
            return None
        return Node("quantity", node.args, Suffix(unit=degree_of(last.text)))

    def mixed_quantity(self, parts: list[Node]) -> Node | None:
        """``2 hours and 30 minutes`` as one quantity; ``None`` for other parts."""
        if len(parts) != 2 or any(part.head != "quantity" for part in parts):
            return None
        first, second = (part.data.unit for part in parts)
        if first is None or second is None or first.powers != second.powers:
            return None
        if first.scale <= second.scale:
            return None
        larger = Node("mul", (number(first.scale / second.scale), parts[0].args[0]))
        return Node("quantity", (Node("add", (larger, parts[1].args[0])),), parts[1].data)


def _rounded(node: Node) -> Node:
    """A value that is stated as approximate."""
    return Node("list", (node,), "~~")


def _occurs(name: Name, value: Node) -> bool:
    """Whether a variable is in its own value, so that the whole is an equation."""
    members = name.params if name.kind == "tuple" else (name.text,)
    return name.kind in ("var", "tuple") and bool(names_of(value) & set(members))
