r"""Lexer of mathematical answers: from LaTeX, plain text or Unicode to one list of tokens.

The same answer comes as LaTeX (``\dfrac{1}{2}``), as plain text (``1/2``, ``sqrt(3)``) and in
Unicode (``½``, ``√3``). :func:`scan` maps these to the same tokens: fonts, colours, spaces and
``\left`` are dropped, each command has one name, and a number is one token with its exact value.
The content of ``\text`` is scanned as words.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fttt.verifiers.number_parser import plain_letters, repeating_decimal

__all__ = [
    "ACCENTS",
    "ALIGNED",
    "FIGURES",
    "FUNCTIONS",
    "Commas",
    "NotUnderstoodError",
    "Token",
    "scan",
    "spelled",
    "word_set",
]

# ---- vocabulary


def word_set(text: str) -> frozenset[str]:
    """The words of a line as a set."""
    return frozenset(text.split())


def pairs(text: str) -> dict[str, str]:
    """A table from a line of keys, each followed by its value."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


GREEK = word_set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi"
    " Omega ell hbar"
)
FUNCTIONS = word_set(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec"
    " arccsc arcsinh arccosh arctanh ln log lg exp sqrt cbrt abs floor ceil max min gcd lcm "
    "sgn"
)
"""Functions with known values. All but ``sqrt`` take any argument behind them."""
OTHER_NAMES = pairs(
    "asin arcsin acos arccos atan arctan cosec csc tg tan ctg cot arctg arctan arsinh arcsinh "
    "arcosh arccosh artanh arctanh sign sgn inf infty infinity infty oo infty ceiling ceil"
)
PLAIN_COMMANDS = (
    FUNCTIONS | (GREEK - {"xi", "nu", "mu", "eta", "chi", "ell"}) | set(OTHER_NAMES) | {"lim"}
)
"""Names of commands that are also read without a backslash."""
SHORT_WORDS = word_set("and or is the for all any are not per yes odd none nor but")
"""Words of fewer than four letters that are words outside ``\\text`` too."""
SHORT_AFTER_WORDS = word_set("of to at by as an if no in on")
"""Words of two letters that are words behind a word, else products."""
ACCENTS = word_set("overline bar dot ddot hat widehat tilde widetilde vec")
ALIGNED = frozenset({"aligned", "align", "gathered", "split", "equation", "alignedat"})
"""Environments of lines with one equation each."""
FIGURES = frozenset(["angle", "triangle", "odot", "parallelogram", "square"])
"""Commands before the points of a figure."""

_COMMAND_LETTERS = pairs(
    "∞ infty ≤ le ⩽ le ≥ ge ⩾ ge ≠ ne ≈ approx ± pm ∓ mp ∈ in ∉ notin ∅ "
    "emptyset \u222a cup ∩ cap \u2216 setminus "
    "⟨ langle 〈 langle ⟩ rangle 〉 rangle ⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil "
    "… dots ⋯ dots ∠ angle △ triangle ∆ Delta ∑ sum ∏ prod ∫ int → to ⇒ Rightarrow ≡ equiv "
    "\u2223 mid ∧ land \u2228 lor ∀ forall ϕ phi µ mu Ω Omega λ lambda Λ Lambda"
) | {
    unicodedata.lookup(f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name}"): name
    for name in GREEK - {"ell", "hbar", "lambda", "Lambda"}
}
"""The command of a Unicode letter."""
_CHARACTERS = {
    **{letter: f"\\{name} " for letter, name in _COMMAND_LETTERS.items()},
    **{
        c: f"\\mathbb{{{unicodedata.normalize('NFKC', c)}}}"
        for c in "\u211d\u2124\u2115\u211a\u2102"
    },
    **dict.fromkeys("\u2014\u02d7", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063\u2064", ""),
    **dict.fromkeys("\u2018\u2032\u02b9", "'"),
    **dict.fromkeys("·\u00d7", "*"),
    **dict.fromkeys("\u00b0\u00ba\u02da", "^\\circ "),
    **{"÷": "/", "¢": "\\text{ cents}", "√": " sqrt ", "∛": " cbrt "},
    **{"ⁿ": "^{n}", "ₙ": "_{n}", "ᵀ": "^{T}"},
}
"""Replacements of characters, once those of numbers are in ASCII."""
_TRANSLATION = str.maketrans(_CHARACTERS)
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207d\u207e"
_LOWERED = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u208a\u208b\u208d\u208e"
_SCRIPTS = ((re.compile(f"[{_RAISED}]+"), "^"), (re.compile(f"[{_LOWERED}]+"), "_"))
_TO_LINE = str.maketrans(_RAISED + _LOWERED, 2 * "0123456789+-()")

_SAME = (
    "frac dfrac tfrac cfrac sfrac nicefrac; binom dbinom tbinom; le leq leqslant leqq; "
    "ge geq geqslant geqq; ne neq; emptyset varnothing; mod bmod; circ degree; phi varphi; "
    "dots ldots cdots dotsc dotsb dotsm dotso vdots ddots; epsilon varepsilon; theta vartheta; "
    "setminus smallsetminus backslash; cup bigcup; cap bigcap; to rightarrow longrightarrow; "
    "Rightarrow implies Longrightarrow; Leftrightarrow iff Longleftrightarrow; "
    "angle measuredangle; vec overrightarrow; mathbb Bbb"
)
SAME_COMMAND = {name: group.split()[0] for group in _SAME.split(";") for name in group.split()[1:]}
"""The one name of a command with several."""
SIGN_COMMANDS = pairs(
    "times * cdot * ast * star * bullet * div / lt < gt > le <= ge >= ne != colon : vert | mid | "
    "lbrace \\{ rbrace \\} lbrack [ rbrack ] lparen ( rparen ) Vert || prime ' lvert lvert "
    "rvert rvert langle langle rangle rangle lfloor lfloor rfloor rfloor lceil lceil rceil rceil"
)
"""Commands that are signs."""
WORD_COMMANDS = {"land": "and", "wedge": "and", "lor": "or", "vee": "or", "forall": "for all"}
SPACES = word_set(
    "quad qquad enspace thinspace medspace thickspace nobreakspace space hfill break newline "
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits strut mathstrut bf "
    "rm it sf tt cal normalfont bfseries itshape boldmath big Big bigg Bigg bigl bigr Bigl "
    "Bigr biggl biggr Biggl Biggr bigm Bigm notag nonumber noindent centering large Large "
    "small negthinspace checkmark square Box blacksquare qed"
)
"""Commands of layout; most of them are spaces of some kind."""
FONTS = word_set(
    "mathbf boldsymbol pmb bm mathit mathsf mathtt mathcal mathscr mathfrak mathnormal emph "
    "underline uline boxed fbox ensuremath textup textsl smash mathbin mathrel mathop mathord"
    " mathpunct bold underbar"
)
"""Commands that only change the font or frame of their argument."""
COLOURS = frozenset({"color", "textcolor", "colorbox", "bbox", "href"})
GONE = frozenset({"phantom", "hphantom", "vphantom", "hspace", "vspace", "tag", "label", "kern"})
TEXTS = word_set(
    "text mbox hbox textbf textit textrm textnormal textsf texttt textsc textmd textbb mathrm"
    " operatorname mathup"
)
ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1, "overline": 1, "bar": 1, "dot": 1, "vec": 1}
ARGUMENTS |= dict.fromkeys(("hat", "widehat", "tilde", "widetilde", "ddot", "mathbb"), 1)
OPENING = frozenset({"(", "[", "\\{", "langle", "lfloor", "lceil", "lvert"})
CLOSING = frozenset({")", "]", "\\}", "rangle", "rfloor", "rceil", "rvert"})
_VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
_COMBINING = re.compile(r"(\d)[\u0304\u0305\u0307]")
CURRENCIES = {"$": "USD", "\u20ac": "EUR", "\u00a3": "GBP", "\u00a5": "JPY", "\u20b9": "INR"}
CURRENCY_WORDS = frozenset({"USD", "EUR", "GBP", "INR", "JPY", "CNY", "Rs"})


def in_ascii(text: str) -> str:
    """``text`` with commands instead of special characters."""
    if text.isascii():
        return text
    text = _COMBINING.sub(r"\\dot{\1}", plain_letters(text))
    for pattern, mark in _SCRIPTS:
        text = pattern.sub(rf"{mark}{{\g<0>}}", text).translate(_TO_LINE)
    text = _VULGAR.sub(_fraction, text).translate(_TRANSLATION)
    return "".join(c if c.isascii() or c in CURRENCIES else _plain(c) for c in text)


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _plain(character: str) -> str:
    """A full-width or otherwise styled character as the plain one."""
    return unicodedata.normalize("NFKC", character).translate(_TRANSLATION)


# ---- tokens

Commas = Literal["outside", "never", "everywhere"]
Kind = Literal["number", "letter", "command", "word", "sign"]

_DEEPEST = 60
"""Groups within groups; an answer has a few."""
_LONGEST_NUMBER = 1000
"""Digits; a longer number is noise."""


class NotUnderstoodError(Exception):
    """The answer cannot be parsed; the message names the part."""


@dataclass(frozen=True, slots=True)
class Token:
    r"""A token of an answer.

    A ``number`` has a ``value``; a ``letter`` is one letter or Greek letter; a ``command`` is a
    function, operator or constant by its LaTeX name without the backslash; a ``word`` has two
    letters or more, or is in ``\text``; a ``sign`` is punctuation, a bracket or an
    operator.
    """

    kind: Kind
    text: str
    value: Fraction | None = None
    spaced: bool = False
    """Whether white space precedes it."""
    upright: bool = False
    r"""Whether it is in ``\text`` or the like."""

    def sign(self, *texts: str) -> bool:
        return self.kind == "sign" and self.text in texts

    def command(self, *texts: str) -> bool:
        return self.kind == "command" and self.text in texts


_SURE = r"(?:\{,\}\s*|,\s*\\!\s*|\\!\s*,\s*|\\[,;: ]\s*|~|\s)"
"""Separators of thousands that have no other meaning."""
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
"""Names of commands that are ordinary words in ``\\text``."""
_ONE_LETTER = re.compile(r"\s*\{\s*([A-Za-z])\s*\}")
_SENTENCE = re.compile(r"\s*[A-Za-z][A-Za-z'-]*(?:\s+[A-Za-z'-]+)+[.!]?\s*")
_HALF_OF_DAY = re.compile(r"([ap])\.?\s?m(?:\.|\b)", re.IGNORECASE)
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
_BAR, _SYSTEM = re.compile(r"[|<>]|\\vert"), re.compile(r"\\\{\s*\\begin")
_LONG_SIGN = re.compile(r"\*\*|<=|>=|!=|=<|=>|->|\.\.\.+|==|:=")
_ESCAPED = pairs("{ \\{ } \\} | || % % & & _ _ # #") | {"$": "currency USD"}
_SAME_SIGN = {"**": "^", "=<": "<=", "=>": "Rightarrow", "->": "to", "==": "=", ":=": "="}


def scan(text: str, *, commas: Commas = "outside") -> tuple[Token, ...]:
    """The tokens of an answer.

    Args:
        text: the answer as written.
        commas: where ``1,234`` is one number, not two: outside brackets, never or everywhere.

    Raises:
        NotUnderstoodError: a group that does not end, or too deep.
    """
    text = in_ascii(text)
    if _SENTENCE.fullmatch(text) and any(len(word) > 3 for word in _TEXT_WORD.findall(text)):
        text = f"\\text{{{text}}}"
    scanner = _Scanner(text, commas)
    while scanner.place < len(text):
        scanner.one()
    return tuple(scanner.tokens)


def spelled(tokens: tuple[Token, ...]) -> str:
    """The tokens as text; two answers with the same text are the same answer.

    Words are lower case, and a group of braces around one token counts as that token.
    """
    parts = [_spell(t) for t in tokens if not t.sign(".", ":") or t is not tokens[-1]]
    return re.sub(r"\{ (\S+) \}", r"\1", " ".join(parts))


def _spell(token: Token) -> str:
    if token.value is not None:
        padded = token.text.startswith("0") and token.text.isdigit()  # "9:05" is not "9:5"
        return token.text if padded else str(token.value)
    if token.kind == "word" and len(token.text) > 1:
        return token.text.casefold()
    return f"\\{token.text}" if token.kind == "command" else token.text


class _Scanner:
    """Scans an answer in one pass."""

    def __init__(self, text: str, commas: Commas) -> None:
        self.text = text
        self.place = 0
        self.commas = commas
        self.tokens: list[Token] = []
        self.spaced = False
        self.brackets = 0
        self.groups = 0
        self.aligned = False
        """Whether ``&`` is an alignment mark of equations."""
        self.keep_dollars = len(re.findall(r"(?<!\\)\$", text)) % 2 == 1

    def add(
        self, kind: Kind, text: str, value: Fraction | None = None, upright: bool = False
    ) -> None:
        self.tokens.append(Token(kind, text, value, self.spaced, upright))
        self.spaced = False
        if kind == "sign":
            self.brackets += (text in OPENING) - (text in CLOSING)

    def one(self) -> None:
        """Scan the next token, or the text between tokens."""
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
                self.spaced = False
                self.add("sign", f"currency {CURRENCIES[character]}")
        else:
            self.other()

    def joins(self) -> bool:
        """Whether a comma before three digits is part of a number."""
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
        if match := _REPEATING.match(self.text, self.place):
            value = _repeating(match)
        elif match := _NUMBERS[commas].match(self.text, self.place):
            value = _decimal(match)
        else:
            return False
        self.place = match.end()
        self.add("number", re.sub(r"[^\d.eE]", "", match[0]), value, upright)
        return True

    def letters(self, run: str) -> None:
        """Letters without a backslash: a function, a word or a product of variables."""
        before = self.tokens[-1] if self.tokens else None
        if len(run) > 1 and run in PLAIN_COMMANDS:
            self.add("command", OTHER_NAMES.get(run, run))
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
        """A group in braces, which are tokens."""
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
        """The text of the next group or single letter; moves behind it."""
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
        bare = match[1].rstrip("*")
        name = SAME_COMMAND.get(bare, bare)
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
        elif name in FONTS:
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
        elif name in _ESCAPED:
            self.add("sign", _ESCAPED[name])
        else:
            raise NotUnderstoodError(f"\\{name}")

    def sized(self, name: str) -> None:
        """A bracket behind ``\\left`` or another size: ``|`` opens or closes, ``.`` is none."""
        rest = self.text[self.place :].lstrip()
        self.place = len(self.text) - len(rest)
        closes = name == "right" or name.endswith("r")
        bar = _BAR.match(rest)
        if rest.startswith(".") and name in ("left", "right", "middle"):
            self.place += 1
        elif _SYSTEM.match(rest) and r"\right." in rest:
            self.place += 2  # the brace before lines of equations, which has no closing brace
        elif bar is not None and name != "middle":
            self.place += len(bar[0])
            self.add("sign", ("r" if closes else "l") + ("angle" if bar[0] in "<>" else "vert"))

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
        if character.isdecimal():
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
            if len(word) == 1:
                self.add("letter", word, upright=True)
            elif word in PLAIN_COMMANDS and (operator or word not in _ALSO_WORDS):
                self.add("command", OTHER_NAMES.get(word, word))
            else:
                self.add("word", word, upright=True)
        elif character in "{}":
            self.place += 1
        elif character.isspace() or character in "~\\":
            self.one()
        elif not self.number(self.joins(), upright=True):
            self.other(upright=True)


def _decimal(match: re.Match[str]) -> Fraction:
    digits = re.sub(r"[^\d.]", "", match["grouped"] or match["plain"])
    power = int(match["power"] or 0)
    if len(digits) + abs(power) > _LONGEST_NUMBER:
        raise NotUnderstoodError(f"a number of more than {_LONGEST_NUMBER} digits")
    return Fraction(digits) * Fraction(10) ** power


def _repeating(match: re.Match[str]) -> Fraction:
    again = match["bar"] or match["one"] or match["round"]
    if again is None:
        again = match["from"] + (match["between"] + match["till"] if match["till"] else "")
    if len(match[0]) > _LONGEST_NUMBER:
        raise NotUnderstoodError(f"a number of more than {_LONGEST_NUMBER} digits")
    return repeating_decimal(match["whole"], match["first"], again)
