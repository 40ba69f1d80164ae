r"""The letters, numbers, commands and words that an answer is written with.

The same answer comes as LaTeX (``\dfrac{1}{2}``), as plain text (``1/2``, ``sqrt(3)``) and in
Unicode (``½``, ``√3``). :func:`scan` turns each into one list of tokens: dress (fonts, colours,
spaces, ``\left``) is taken off, each command has one name, and a number is one token that carries
its exact value. What stands in ``\text`` is scanned as words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fttt.verifiers.math.symbols import (
    ALIGNED,
    ARGUMENTS,
    CLOSING,
    COLOURS,
    CURRENCIES,
    CURRENCY_WORDS,
    DRESS,
    FUNCTIONS,
    GONE,
    GREEK,
    OPENING,
    OTHER_NAMES,
    PLAIN_COMMANDS,
    SAME_COMMAND,
    SHORT_AFTER_WORDS,
    SHORT_WORDS,
    SIGN_COMMANDS,
    SPACES,
    TEXTS,
    WORD_COMMANDS,
    in_ascii,
)

__all__ = ["Commas", "NotUnderstoodError", "Token", "scan", "spelled"]

Commas = Literal["outside", "never", "everywhere"]
Kind = Literal["number", "letter", "command", "word", "sign"]

_DEEPEST = 60
"""Groups within groups; an answer has a few."""
_LONGEST_NUMBER = 1000
"""Digits; a longer number is noise."""


class NotUnderstoodError(Exception):
    """The answer is written in a way that nothing here reads; the message says which part."""


@dataclass(frozen=True, slots=True)
class Token:
    r"""One piece of an answer.

    ``number`` carries its ``value``; a ``letter`` is one letter or Greek letter; a ``command`` is
    a function, operator or constant by its LaTeX name without the backslash; a ``word`` has two
    letters or more, or stands alone in ``\text``; a ``sign`` is punctuation, a bracket or an
    operator.
    """

    kind: Kind
    text: str
    value: Fraction | None = None
    spaced: bool = False
    """Whether white space stands before it."""
    upright: bool = False
    r"""Whether it stands in ``\text`` or the like."""

    def sign(self, *texts: str) -> bool:
        return self.kind == "sign" and self.text in texts

    def command(self, *texts: str) -> bool:
        return self.kind == "command" and self.text in texts


_SURE = r"(?:\{,\}\s*|,\s*\\!\s*|\\!\s*,\s*|\\[,;: ]\s*|~|\s)"
"""What stands between thousands and nowhere else."""
_PLAIN = r"\d+(?:\.\d+)?|\.\d+"
_NUMBERS = {
    commas: re.compile(
        rf"(?:(?P<grouped>[1-9]\d{{0,2}}(?:{gap}\d{{3}})+(?!\d)(?:\.\d+)?)|(?P<plain>{_PLAIN}))"
        r"(?:[eE](?P<power>[-+]?\d{1,4})(?![\w^.]))?"
    )
    for commas, gap in ((True, f"(?:{_SURE}|,)"), (False, _SURE))
}
_REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?P<first>\d*)(?:"
    r"\\(?:overline|bar)\s*(?:\{\s*(?P<bar>\d+)\s*\}|(?P<one>\d))"
    r"|\\dot\s*\{?\s*(?P<from>\d)\s*\}?(?:(?P<between>\d*)\\dot\s*\{?\s*(?P<till>\d)\s*\}?)?"
    r"|(?<=\.)\((?P<round>\d+)\))"
)
_LETTERS = re.compile(r"[A-Za-z]+")
_TEXT_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_ROW_SPACE = re.compile(r"\*?\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]")
_ALSO_WORDS = PLAIN_COMMANDS - FUNCTIONS - {"pi", "infinity"} | {"min", "max", "sec", "abs"}
"""Names of commands that are other words in ``\\text``."""
_ONE_LETTER = re.compile(r"\s*\{\s*([A-Za-z])\s*\}")
_SENTENCE = re.compile(r"\s*[A-Za-z][A-Za-z'-]*(?:\s+[A-Za-z'-]+)+[.!]?\s*")
_HALF_OF_DAY = re.compile(r"([ap])\.?\s?m(?:\.|\b)", re.IGNORECASE)
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
_LONG_SIGN = re.compile(r"\*\*|<=|>=|!=|=<|=>|->|\.\.\.+|==|:=")
_SAME_SIGN = {"**": "^", "=<": "<=", "=>": "Rightarrow", "->": "to", "==": "=", ":=": "="}


def scan(text: str, *, commas: Commas = "outside") -> tuple[Token, ...]:
    """The tokens of an answer.

    Args:
        text: the answer as it was written.
        commas: where ``1,234`` is one number, not two: outside brackets, nowhere or everywhere.

    Raises:
        NotUnderstoodError: a group that does not end, or too deep.
    """
    text = in_ascii(text)
    if _SENTENCE.fullmatch(text) and any(len(word) > 3 for word in _TEXT_WORD.findall(text)):
        text = f"\\text{{{text}}}"
    scanner = _Scanner(text, commas)
    scanner.run()
    return tuple(scanner.tokens)


def spelled(tokens: tuple[Token, ...]) -> str:
    """The tokens in one spelling; two answers with the same one are the same answer.

    Words are lower case, and a group of braces around one token counts as that token.
    """
    parts = [
        _spell(token) for token in tokens if not token.sign(".", ":") or token is not tokens[-1]
    ]
    return re.sub(r"\{ (\S+) \}", r"\1", " ".join(parts))


def _spell(token: Token) -> str:
    if token.value is not None:
        padded = token.text.startswith("0") and token.text.isdigit()  # "9:05" is not "9:5"
        return token.text if padded else str(token.value)
    if token.kind == "word" and len(token.text) > 1:
        return token.text.casefold()
    return f"\\{token.text}" if token.kind == "command" else token.text


class _Scanner:
    """Walks over an answer once. Signs before arguments and within ``\\text`` differ."""

    def __init__(self, text: str, commas: Commas) -> None:
        self.text = text
        self.place = 0
        self.commas = commas
        self.tokens: list[Token] = []
        self.spaced = False
        self.brackets = 0
        self.groups = 0
        self.aligned = False
        """Whether ``&`` only says where lines are aligned."""
        self.keep_dollars = len(re.findall(r"(?<!\\)\$", text)) % 2 == 1

    def run(self) -> None:
        while self.place < len(self.text):
            self.one()

    def add(
        self, kind: Kind, text: str, value: Fraction | None = None, upright: bool = False
    ) -> None:
        self.tokens.append(Token(kind, text, value, self.spaced, upright))
        self.spaced = False
        if kind == "sign":
            self.brackets += (text in OPENING) - (text in CLOSING)

    def one(self) -> None:
        """Scan the next token, or what is between tokens."""
        character = self.text[self.place]
        if character.isspace() or character == "~":
            self.spaced = True
            self.place += 1
        elif self.number(self.joins()):
            pass
        elif character == "\\":
            self.command()
        elif match := self.half_of_day():
            self.place = match.end()
            self.add("word", f"{match[1].lower()}m", upright=True)
        elif match := _LETTERS.match(self.text, self.place):
            self.place = match.end()
            self.letters(match[0])
        elif character == "{":
            self.group()
        elif character in CURRENCIES:
            self.place += 1
            if character != "$" or self.keep_dollars:
                self.add("sign", "currency", upright=True)
                self.tokens[-1] = Token("sign", f"currency {CURRENCIES[character]}")
        else:
            self.other()

    def joins(self) -> bool:
        """Whether a comma before three digits belongs to their number."""
        return self.commas == "everywhere" or (self.commas == "outside" and self.brackets == 0)

    def half_of_day(self) -> re.Match[str] | None:
        """``a.m.`` or ``p.m.`` behind a number, with full stops, capitals or a space."""
        match = _HALF_OF_DAY.match(self.text, self.place)
        if match is None or not self.tokens or self.tokens[-1].kind != "number":
            return None
        return match if self.spaced or "." in match[0] or match[0].isupper() else None

    def other(self, upright: bool = False) -> None:
        match = _LONG_SIGN.match(self.text, self.place)
        sign = match[0] if match else self.text[self.place]
        self.place += len(sign)
        sign = _SAME_SIGN.get(sign, sign)
        if sign.startswith("..."):
            self.add("command", "dots")
        elif sign in ("Rightarrow", "to"):
            self.add("command", sign)
        elif sign == "&" and self.aligned:
            self.spaced = True
        elif not sign.isprintable() or sign == "}":
            raise NotUnderstoodError(f"a {sign!r} that nothing opens")
        else:
            self.add("sign", sign, upright=upright)

    def number(self, commas: bool, upright: bool = False) -> bool:
        match = _REPEATING.match(self.text, self.place)
        if match:
            value = _repeating(match)
        else:
            match = _NUMBERS[commas].match(self.text, self.place)
            if match is None:
                return False
            value = _decimal(match)
        self.place = match.end()
        self.add("number", re.sub(r"[^\d.eE]", "", match[0]), value, upright)
        return True

    def letters(self, run: str) -> None:
        """Letters without a backslash: a function, a word or a product of variables."""
        command = OTHER_NAMES.get(run, run)
        before = self.tokens[-1] if self.tokens else None
        if len(run) > 1 and run in PLAIN_COMMANDS:
            self.add("command", command)
        elif (
            run in CURRENCY_WORDS
            or run.lower() in SHORT_WORDS
            or (run.lower() in SHORT_AFTER_WORDS and before is not None and before.kind == "word")
        ):
            self.add("word", run)
        elif run[:-1] in FUNCTIONS and run[-1] in "xyznABC":
            self.add("command", run[:-1])
            self.add("letter", run[-1])
        elif len(run) > 2 and run.istitle():
            self.add("word", run)
        elif len(run) < 4 or run.isupper() or sorted(run) == list(run):
            for letter in run:
                self.add("letter", letter)
        else:
            self.add("word", run)

    def group(self) -> None:
        """A group in braces; its braces are tokens, but round one of ``\\text``."""
        self.nest(1)
        self.add("sign", "{")
        self.place += 1
        while self.place < len(self.text) and self.text[self.place] != "}":
            self.one()
        if self.place == len(self.text):
            raise NotUnderstoodError("a brace that is not closed")
        self.place += 1
        self.add("sign", "}")
        self.nest(-1)

    def nest(self, step: int) -> None:
        self.groups += step
        if self.groups > _DEEPEST:
            raise NotUnderstoodError(f"more than {_DEEPEST} groups in one another")

    def inside(self) -> str:
        """The text of the group, or the single letter, that stands next; the place moves on."""
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        start = self.place
        if not self.text.startswith("{", start):
            match = _COMMAND.match(self.text, start)
            self.place = match.end() if match else min(start + 1, len(self.text))
            return self.text[start : self.place]
        depth = 0
        for match in re.finditer(r"\\.|[{}]", self.text[start:], re.DOTALL):
            depth += (match[0] == "{") - (match[0] == "}")
            if depth == 0:
                self.place = start + match.end()
                return self.text[start + 1 : self.place - 1]
        raise NotUnderstoodError("a brace that is not closed")

    def command(self) -> None:
        match = _COMMAND.match(self.text, self.place)
        if match is None:
            raise NotUnderstoodError("a backslash at the end")
        self.place = match.end()
        name = match[1].rstrip("*")
        name = SAME_COMMAND.get(name, name)
        if not name.isalpha():
            self.escaped(name)
        elif name in ("left", "right", "middle") or re.fullmatch(r"[bB]igg?[lrm]?", name):
            self.sized(name)
        elif name in SPACES:
            self.spaced = True
        elif name in GONE:
            self.inside()
            self.spaced = True
        elif name in COLOURS:
            if self.text.startswith("[", self.place):
                self.place = max(self.text.find("]", self.place), self.place) + 1
            self.inside()
        elif name in TEXTS:
            self.words(self.inside(), operator=name == "operatorname")
        elif name in DRESS:
            if match := _ONE_LETTER.match(self.text, self.place):  # "\\mathcal{O}(n)"
                self.place = match.end()
                self.add("letter", match[1])
        elif name in ("begin", "end"):
            self.environment(name)
        elif name in WORD_COMMANDS:
            for word in WORD_COMMANDS[name].split():
                self.add("word", word)
        elif name in SIGN_COMMANDS:
            self.add("sign", SIGN_COMMANDS[name])
        elif name in ARGUMENTS:
            self.with_arguments(name)
        elif name in ("R", "Z", "N", "Q", "C"):
            self.add("command", f"set {name}")
        elif name in GREEK and name != "pi":
            self.add("letter", f"\\{name}")
        else:
            self.add("command", OTHER_NAMES.get(name, name))

    def escaped(self, name: str) -> None:
        if name in ",;:> " or name.isspace():
            self.spaced = True
        elif name in "()[]!/@-":
            pass  # delimiters of mathematics, negative space, hyphenation
        elif name == "\\":
            self.add("sign", "\\\\")
            if match := _ROW_SPACE.match(self.text, self.place):
                self.place = match.end()
        elif name in "{}":
            self.add("sign", f"\\{name}")
        elif name == "$":
            self.add("sign", "currency USD")
        elif name == "|":
            self.add("sign", "||")
        elif name in "%&_#":
            self.add("sign", name)
        else:
            raise NotUnderstoodError(f"\\{name}")

    def sized(self, name: str) -> None:
        """A bracket behind ``\\left`` or another size: ``|`` opens or closes, ``.`` is none."""
        rest = self.text[self.place :].lstrip()
        self.place = len(self.text) - len(rest)
        closes = name == "right" or name.endswith("r")
        if rest.startswith(".") and name in ("left", "right", "middle"):
            self.place += 1
        elif rest.startswith("\\{") and self.opens_system(rest[2:]):
            self.place += 2
        elif rest.startswith("|") and name != "middle":
            self.place += 1
            self.add("sign", "rvert" if closes else "lvert")
        elif rest.startswith(("<", ">")) and name != "middle":
            self.place += 1
            self.add("sign", "rangle" if closes else "langle")
        elif rest.startswith("\\vert") and name != "middle":
            self.place += 5
            self.add("sign", "rvert" if closes else "lvert")

    @staticmethod
    def opens_system(rest: str) -> bool:
        """Whether a brace before lines of equations is never closed."""
        return rest.lstrip().startswith("\\begin") and r"\right." in rest

    def environment(self, name: str) -> None:
        kind = self.inside()
        if name == "begin" and kind in ("array", "tabular"):
            self.inside()  # the columns' alignment
        self.aligned = name == "begin" and kind.rstrip("*") in ALIGNED
        self.add("command", f"{name} {kind.rstrip('*')}")

    def with_arguments(self, name: str) -> None:
        """A command and its arguments, each as a group: ``\\frac12`` has two of one digit."""
        if name == "mathbb":
            letter = self.inside().strip()
            expected = letter in ("E", "P")  # of a value, of an event
            self.add("letter" if expected else "command", letter if expected else f"set {letter}")
            return
        self.nest(1)
        self.add("command", name)
        if name == "sqrt":
            while self.text.startswith(" ", self.place):
                self.place += 1
            if self.text.startswith("(", self.place):  # plain text: the brackets are its argument
                self.nest(-1)
                return
            if self.text.startswith("[", self.place):
                while self.place < len(self.text) and self.text[self.place] != "]":
                    self.one()
                if self.place < len(self.text):
                    self.one()
        for _ in range(ARGUMENTS[name]):
            while self.place < len(self.text) and self.text[self.place] in " \n\t":
                self.place += 1
            if self.text.startswith("{", self.place):
                self.group()
            elif self.place < len(self.text):
                self.add("sign", "{")
                self.single()
                self.add("sign", "}")
        self.nest(-1)

    def single(self) -> None:
        """One digit, letter or command as an argument without braces."""
        character = self.text[self.place]
        if character.isdigit():
            self.place += 1
            self.add("number", character, Fraction(int(character)))
        elif character.isalpha():
            self.place += 1
            self.add("letter", character)
        else:
            self.one()

    def words(self, text: str, operator: bool) -> None:
        """The content of ``\\text``: words, numbers and signs; mathematics between dollars."""
        inner = _Scanner(text, self.commas)
        inner.groups = self.groups
        inner.nest(1)
        inner.spaced = self.spaced
        for number, part in enumerate(re.split(r"(?<!\\)\$", text)):
            inner.text, inner.place = part, 0
            while inner.place < len(part):
                if number % 2:
                    inner.one()
                else:
                    inner.word(operator)
        self.tokens += inner.tokens
        self.spaced = inner.spaced

    def word(self, operator: bool) -> None:
        character = self.text[self.place]
        if match := _HALF_OF_DAY.match(self.text, self.place):
            self.place = match.end()
            self.add("word", f"{match[1].lower()}m", upright=True)
        elif match := _TEXT_WORD.match(self.text, self.place):
            self.place = match.end()
            word = match[0]
            name = OTHER_NAMES.get(word, word)
            if len(word) == 1:
                self.add("letter", word, upright=True)
            elif word in PLAIN_COMMANDS and (operator or word not in _ALSO_WORDS):
                self.add("command", name)
            else:
                self.add("word", word, upright=True)
        elif character.isspace() or character in "~\\{}" or self.number(self.joins(), upright=True):
            if character in "{}":
                self.place += 1
            elif character == "\\" or character.isspace() or character == "~":
                self.one()
        else:
            self.other(upright=True)


def _decimal(match: re.Match[str]) -> Fraction:
    digits = re.sub(r"[^\d.]", "", match["grouped"] or match["plain"])
    power = int(match["power"] or 0)
    if len(digits) + abs(power) > _LONGEST_NUMBER:
        raise NotUnderstoodError(f"a number of more than {_LONGEST_NUMBER} digits")
    return Fraction(digits) * Fraction(10) ** power


def _repeating(match: re.Match[str]) -> Fraction:
    whole, first = match["whole"], match["first"]
    again = match["bar"] or match["one"] or match["round"]
    if again is None:
        again = match["from"] + (match["between"] + match["till"] if match["till"] else "")
    if len(match[0]) > _LONGEST_NUMBER:
        raise NotUnderstoodError(f"a number of more than {_LONGEST_NUMBER} digits")
    value = Fraction(int(again), 10 ** len(again) - 1) + int(whole + first or 0)
    return value / Fraction(10) ** len(first)
