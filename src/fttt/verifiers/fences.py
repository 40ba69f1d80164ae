"""The blocks of a text in Markdown, as models write it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal

from fttt.verifiers.source import CODE_START, DEFINITION, syntax_tree

__all__ = ["Opening", "dedented", "opened_by", "read_block"]

_FENCES = 8
"""How many fences may stand in the texts of a block, before one that does not parse is ended."""

_BEFORE = r"(?P<before>[ \t]*(?:>[ \t]?)*[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)"
_FENCE = re.compile(rf"{_BEFORE}(?:(?P<ticks>`{{3,}})(?P<info>[^`]*)|(?P<tildes>~{{3,}})(.*))$")
_ONE_LINE = re.compile(r"[ \t]*`{3,}(?P<info>[^`]+)`{3,}[ \t]*$")
_BEHIND_TEXT = re.compile(r"(?P<text>(?:[^`]|`{1,2}(?!`)|```[^`]*```)*\S[ \t]*)```(?P<info>[^`]*)$")
_INFO = re.compile(r"\{[ \t]*\.?(?P<braced>[\w+#-]*)[^}]*\}|(?P<word>[^\s{]*)(?P<rest>.*)", re.S)
_PYTHON = re.compile(r"(?:i?python|py)-?[\d.]*(?:[:,].*)?|.*\.py|tool_code", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Opening:
    """A line that opens a block."""

    fence: str
    kind: Literal["python", "unmarked", "other"]
    code: str | None
    """What stands behind the fence and is code already."""
    before: str = ""
    """What stands before it: space, a list's mark, a quotation's."""
    whole: bool = False
    """Whether the line closes the block too."""


def opened_by(line: str) -> Opening | None:
    """The block that a line opens, if any."""
    if "```" not in line and "~~~" not in line:
        return None
    fence = _FENCE.match(line)
    if fence is not None:
        kind, code = _read_info(fence["info"] if fence["ticks"] else fence[5])
        return Opening(fence["ticks"] or fence["tildes"], kind, code, fence["before"])
    one = _ONE_LINE.match(line)
    if one is not None:
        kind, code = _read_info(one["info"])
        return None if code is None else Opening("```", kind, code, whole=True)
    behind = _BEHIND_TEXT.match(line)
    if behind is None:
        return None
    kind, code = _read_info(behind["info"])
    if kind == "python" or (not behind["info"].strip() and behind["text"].rstrip().endswith(":")):
        return Opening("```", kind, code)
    return None


def _read_info(info: str) -> tuple[Literal["python", "unmarked", "other"], str | None]:
    """What a fence is marked as, and the code that stands on its line."""
    info = info.strip()
    read = _INFO.match(info)
    assert read is not None, "it matches any text"
    if _PYTHON.fullmatch(read["braced"] or read["word"] or ""):
        rest = (read["rest"] or "").strip()
        return "python", rest if CODE_START.match(rest) else None
    if not info or CODE_START.match(info):
        return "unmarked", info or None
    return "other", None


def read_block(lines: list[str], at: int, opening: Opening) -> tuple[str, bool, int]:
    """The text of the block that a line opens, whether it is closed, and the line behind it.

    A fence closes a block where what stands in between parses, so one in a text of the program
    does not; where none does, the first one closes it.
    """
    content = [] if opening.code is None else [opening.code]
    if opening.whole:
        return f"{opening.code}\n", True, at + 1
    quoted, room = ">" in opening.before, len(opening.before)
    closing = re.compile(rf"[ \t]*{opening.fence[0]}{{{len(opening.fence)},}}")
    first: tuple[str, bool, int] | None = None
    attempts = 0
    for n in range(at + 1, len(lines)):
        line = re.sub(r"^[ \t]*(?:>[ \t]?)+", "", lines[n]) if quoted else lines[n]
        fence = closing.match(line)
        if fence is not None and len(line) - len(line.lstrip()) <= room + 3:
            info = line[fence.end() :].strip()
            found = ("\n".join(content) + "\n", True, n if info else n + 1)
            if opening.kind == "other":
                return found
            first = first or found
            attempts += 1
            if attempts > _FENCES:
                return first
            if syntax_tree(textwrap.dedent(found[0])) is not None:
                return found
        elif opening.fence in line and opening.kind != "other" and attempts < _FENCES:
            last = line.partition(opening.fence)[0]
            text = "\n".join([*content, last]) + "\n"
            attempts += 1
            if "#" not in last and syntax_tree(textwrap.dedent(text)) is not None:
                return text, True, n + 1
        content.append(re.sub(rf"^[ \t]{{0,{room}}}", "", line) if room else line)
    return first or ("\n".join(content), False, len(lines))


def dedented(text: str) -> str:
    """A block in a list is indented as a whole; one that goes on in mid-function is not.

    A first line that only names the language belongs to the fence.
    """
    first, _, rest = text.partition("\n")
    if _PYTHON.fullmatch(first.strip()):
        text = rest
    if not text.lstrip("\n")[:1].isspace():
        return text
    dedented = textwrap.dedent(text)
    return dedented if DEFINITION.search(dedented) else text
