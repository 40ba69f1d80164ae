r"""The names of commands and the special characters that answers are written with."""

from __future__ import annotations

import re
import unicodedata

from fttt.verifiers.number_parser import plain_letters

__all__ = [
    "ACCENTS",
    "ALIGNED",
    "ARGUMENTS",
    "CLOSING",
    "COLOURS",
    "CURRENCIES",
    "CURRENCY_WORDS",
    "DRESS",
    "FIGURES",
    "FUNCTIONS",
    "GONE",
    "GREEK",
    "OPENING",
    "OTHER_NAMES",
    "PLAIN_COMMANDS",
    "SAME_COMMAND",
    "SHORT_AFTER_WORDS",
    "SHORT_WORDS",
    "SIGN_COMMANDS",
    "SPACES",
    "TEXTS",
    "WORD_COMMANDS",
    "in_ascii",
    "word_set",
]


def word_set(text: str) -> frozenset[str]:
    """The words of a line as a set."""
    return frozenset(text.split())


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
"""Functions whose values are known. All but ``sqrt`` take any argument that stands behind them."""
OTHER_NAMES = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "cosec": "csc",
    "tg": "tan",
    "ctg": "cot",
    "arctg": "arctan",
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "sign": "sgn",
    "inf": "infty",
    "infinity": "infty",
    "oo": "infty",
    "ceiling": "ceil",
}
PLAIN_COMMANDS = (
    FUNCTIONS | (GREEK - {"xi", "nu", "mu", "eta", "chi", "ell"}) | set(OTHER_NAMES) | {"lim"}
)
"""Names that are meant as commands though they have no backslash."""

SHORT_WORDS = word_set("and or is the for all any are not per yes odd none nor but")
"""Words of fewer than four letters that are words also outside ``\\text``."""
SHORT_AFTER_WORDS = word_set("of to at by as an if no in on")
"""Words of two letters that are words where one stands before them, else products."""

ACCENTS = word_set("overline bar dot ddot hat widehat tilde widetilde vec")
ALIGNED = frozenset({"aligned", "align", "gathered", "split", "equation", "alignedat"})
"""Environments of lines that are equations."""
FIGURES = frozenset(["angle", "triangle", "odot", "parallelogram", "square"])
"""Commands before the points of a figure."""

_COMMAND_LETTERS = (
    "∞ infty ≤ le ⩽ le ≥ ge ⩾ ge ≠ ne ≈ approx ± pm ∓ mp ∈ in ∉ notin ∅ "
    "emptyset \u222a cup ∩ cap \u2216 setminus "
    "⟨ langle 〈 langle ⟩ rangle 〉 rangle ⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil "
    "… dots ⋯ dots ∠ angle △ triangle ∆ Delta ∑ sum ∏ prod ∫ int → to ⇒ Rightarrow ≡ equiv "
    "\u2223 mid ∧ land \u2228 lor ∀ forall ϕ phi µ mu Ω Omega"
)
"""Letters that stand for a command, each before its name."""
_CHARACTERS = {
    **dict.fromkeys("\u2014\u02d7", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063\u2064", ""),
    **dict.fromkeys("\u2018\u2032\u02b9", "'"),
    **dict.fromkeys("·\u00d7", "*"),
    **dict.fromkeys("\u00b0\u00ba\u02da", "^\\circ "),
    "÷": "/",
    "¢": "\\text{ cents}",
    "√": " sqrt ",
    "∛": " cbrt ",
    "ⁿ": "^{n}",
    "ₙ": "_{n}",
    "ᵀ": "^{T}",
    **{
        letter: f"\\mathbb{{{plain}}}"
        for letter, plain in zip("\u211d\u2124\u2115\u211a\u2102", "RZNQC", strict=True)
    },
}
"""Characters that stand for others; what numbers are written with is levelled before."""
_CHARACTERS |= {
    letter: f"\\{name} " for letter, name in zip(*[iter(_COMMAND_LETTERS.split())] * 2, strict=True)
}
_CHARACTERS |= {
    unicodedata.lookup(f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): (
        f"\\{name} "
    )
    for name in GREEK - {"ell", "hbar"}
    for size in ("SMALL" if name.islower() else "CAPITAL",)
}
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
"""The name that stands for several."""
_SIGNS = (
    "times * cdot * ast * star * bullet * div / lt < gt > le <= ge >= ne != colon : vert | mid | "
    "lbrace \\{ rbrace \\} lbrack [ rbrack ] lparen ( rparen ) Vert || prime ' lvert lvert "
    "rvert rvert langle langle rangle rangle lfloor lfloor rfloor rfloor lceil lceil rceil rceil"
)
SIGN_COMMANDS = dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True))
"""Commands that are signs."""
WORD_COMMANDS = {"land": "and", "wedge": "and", "lor": "or", "vee": "or", "forall": "for all"}

SPACES = word_set(
    "quad qquad enspace thinspace medspace thickspace nobreakspace space hfill break newline "
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits strut mathstrut bf "
    "rm it sf tt cal normalfont bfseries itshape boldmath big Big bigg Bigg bigl bigr Bigl "
    "Bigr biggl biggr Biggl Biggr bigm Bigm notag nonumber noindent centering large Large "
    "small negthinspace checkmark square Box blacksquare qed"
)
"""Commands that change how an answer looks; most of them are spaces of some kind."""
DRESS = word_set(
    "mathbf boldsymbol pmb bm mathit mathsf mathtt mathcal mathscr mathfrak mathnormal emph "
    "underline uline boxed fbox ensuremath textup textsl smash mathbin mathrel mathop mathord"
    " mathpunct bold underbar"
)
"""Commands whose argument is the answer in other dress."""
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
    """``text`` with commands in place of special characters."""
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
    """A full-width or otherwise dressed character as the one that it stands for."""
    return unicodedata.normalize("NFKC", character).translate(_TRANSLATION)
