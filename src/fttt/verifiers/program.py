"""The program in what a model wrote, put together with the prompt that it answers.

What counts as the program depends on what is asked for, so it is looked for with the prompt, the
tests and the entry point in hand: of several blocks the last that defines the entry point, with
the blocks that it needs; else what goes on where the prompt stops, as a base model writes.
Nothing here runs anything.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from fttt.verifiers.thought import after_thought

__all__ = ["Program", "find_program"]

_LONG = 100_000
"""Characters; a longer program is left for the judge to parse, inside its box."""
_ATTEMPTS = 100
"""How often the end of a text that breaks off is looked for."""
_FENCES = 8
"""How many fences may stand in the texts of a block, before one that does not parse is ended."""

_CODE = (
    r"(?:(?:async[ \t]+def|def|class)[ \t]+\w|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b"
    r"|@\w|[^\W\d]\w*(?:[ \t]*,[ \t]*[^\W\d]\w*)*[ \t]*(?::[^=\n]+)?=(?!=))"
)
_STARTS = re.compile(_CODE)
_BEGINS = re.compile(
    rf"{_CODE}|#|\"\"\"|'''|[ \t]+\S|(?:return|yield|raise|for|while|if|with|try|assert)\b"
)
"""How a completion begins that is a program from its first line on, or goes on with one."""
_DEFINES = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w", re.MULTILINE)

_BEFORE = r"(?P<before>[ \t]*(?:>[ \t]?)*[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)"
_FENCE = re.compile(rf"{_BEFORE}(?:(?P<ticks>`{{3,}})(?P<info>[^`]*)|(?P<tildes>~{{3,}})(.*))$")
_ONE_LINE = re.compile(r"[ \t]*`{3,}(?P<info>[^`]+)`{3,}[ \t]*$")
_BEHIND_TEXT = re.compile(r"(?P<text>(?:[^`]|`{1,2}(?!`)|```[^`]*```)*\S[ \t]*)```(?P<info>[^`]*)$")
_INFO = re.compile(r"\{[ \t]*\.?(?P<braced>[\w+#-]*)[^}]*\}|(?P<word>[^\s{]*)(?P<rest>.*)", re.S)
_PYTHON = re.compile(r"(?:i?python|py)[\d.]*(?:[:,].*)?|.*\.py|tool_code", re.IGNORECASE)
_TAGS = re.compile(r"^[ \t]*\[(?:(PYTHON|CODE|BEGIN)|/PYTHON|/CODE|DONE|END)\][ \t]*$", re.M)
"""Marks of few-shot prompts and of Code Llama that stand for fences."""
_STOP = re.compile(
    r"(?:<[|\uff5c](?:end[^|\uff5c<>\n]{0,20}|eo[tsmd](?:_id)?|return|im_end|fim_\w+)[|\uff5c]>"
    r"|<end_of_turn>|<eos>)(?![\"'])|</s>\s*$",
    re.IGNORECASE,
)
"""A stop token that was decoded as text; what follows it is no answer."""

_GIVEN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__", "__builtins__"}
_NO_PYTHON = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Program:
    """A program as a completion holds it, and how it is put together with the prompt."""

    code: str
    """Its text, the blocks that it needs included."""
    before: str
    """What must stand before the prompt: ``from __future__`` statements, or nothing."""
    behind: str
    """What stands behind the prompt."""


def find_program(
    completion: str, *, prompt: str = "", entry_point: str = "", test: str = ""
) -> Program | None:
    """The program in a completion, or ``None`` where there is none.

    A thought does not count. Where nothing defines what is asked for and nothing goes on where the
    prompt stops, the last program counts, which then defines too little.

    Args:
        completion: what the model wrote.
        prompt: the code that stands before the program.
        entry_point: the expression that the tests are given, such as ``f`` or ``Solution().f``;
            without one, what the tests use and do not define is asked for.
        test: the tests, which may also use other names of the program.
    """
    said = after_thought(completion.replace("\r\n", "\n"))
    if said is None:
        return None
    asked = _asked(prompt, entry_point, test)
    said = _TAGS.sub(lambda tag: "```python" if tag[1] else "```", _STOP.split(said, maxsplit=1)[0])
    blocks, texts = _split(said.split("\n"), asked)
    others = _outside(texts, asked)
    found = _chosen(asked, blocks) or _chosen(asked, others)
    if found is not None:
        return found
    for pieces in (blocks, others):
        partly = [n for n, piece in enumerate(pieces) if asked.defined_by(piece) == "partly"]
        programs = [n for n, piece in enumerate(pieces) if piece.is_program]
        if partly or programs:
            return _whole(asked, pieces, (partly or programs)[-1])
    return None


def _chosen(asked: _Asked, pieces: Sequence[_Piece]) -> Program | None:
    """The program of the last piece that defines what is asked for, else of one that goes on."""
    whole = [n for n, piece in enumerate(pieces) if asked.defined_by(piece) == "whole"]
    if whole:
        return _whole(asked, pieces, whole[-1])
    for n in reversed(range(len(pieces))):
        behind = asked.continued_by(pieces[n])
        if behind is not None:
            return _continued(asked, pieces, n, behind)
    return None


class _Piece:
    """A part of a completion that may be the program, or a part of it."""

    def __init__(self, text: str, *, marked: bool = False, open_end: bool = False) -> None:
        self.raw = text
        self.marked = marked
        """Whether its fence says that it is Python."""
        self.open_end = open_end
        """Whether nothing says where it ends, so that it ends with its last line that parses."""
        self.text = text

    @property
    def is_program(self) -> bool:
        """Whether it is meant as a program, whatever it defines."""
        return self.marked or bool(_DEFINES.search(self.text))

    @cached_property
    def tree(self) -> ast.Module | None:
        return _tree(self.text)

    @cached_property
    def names(self) -> _Names:
        return _names(self.text) or _Names()


@dataclass(frozen=True, slots=True)
class _Names:
    """The global names of a program."""

    made: frozenset[str] = frozenset()
    """Bound by a definition or an assignment."""
    imported: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()

    @property
    def bound(self) -> frozenset[str]:
        return self.made | self.imported

    @property
    def missing(self) -> frozenset[str]:
        """Used, and neither bound nor built in."""
        return self.used - self.bound - _GIVEN


@dataclass(frozen=True)
class _Asked:
    """What a problem asks for: the names to be defined, and where its prompt stops."""

    prompt: str
    path: tuple[str, ...] = ()
    """The entry point's name and those of its attributes, from the outside in."""
    names: frozenset[str] = frozenset()
    """A program defines at least one of them."""
    tested: frozenset[str] = frozenset()
    """What the tests use and have from nowhere."""
    own: frozenset[str] = frozenset()
    """What the prompt defines."""
    ending: str = "\n"
    """What closes the prompt, so that a new statement may follow."""
    stub: bool = False
    """Whether the prompt only says what the entry point is to do."""
    last: _Definition | None = None
    """The entry point's definition, where the prompt ends with it and may go on."""
    body: int = 0
    """Statements in its body."""
    columns: tuple[int, ...] = ()
    """Where its body, and that of its class, go on."""

    def defined_by(self, piece: _Piece) -> Literal["whole", "partly", "no"]:
        """Whether a piece defines what is asked for: at all, and more than in outline."""
        if piece.tree is None or _names(piece.text) is None:
            if not any(_writes(name, piece.text) for name in self.names):
                return "no"
            outline = _tree(f"{piece.text.rstrip()}\n    pass\n") is not None
            return "partly" if outline or piece.open_end else "whole"
        made = piece.names.made & self.names
        if not made:
            return "partly" if piece.names.imported & self.names else "no"
        broken_off = piece.open_end and _breaks_off(piece, made)
        outline = all(_is_outline(_find(piece.tree, (name,))) for name in made)
        return "partly" if outline or broken_off else "whole"

    def continued_by(self, piece: _Piece) -> str | None:
        """A piece as it goes on where the prompt stops, where it does."""
        if self.last is None or len(piece.raw) > _LONG or self._stands_alone(piece.raw):
            return None
        starts = ("",) if self.prompt.endswith("\n") else ("", "\n")
        ways = [start + text for text in self._indented(piece.raw) for start in starts]
        if piece.open_end:
            ways = [_compiling(self.prompt, way, frozenset(self.path[:1])) for way in ways]
        ways = [way for way in ways if self._grows(way)]
        return max(ways, key=lambda way: way.count("\n"), default=None)  # the first of equals

    def _stands_alone(self, text: str) -> bool:
        """Whether a text is a program, or nothing, and not a method without its class."""
        if not text.strip():
            return True
        if text.lstrip("\n")[0].isspace() or not _compiles(text):
            return False
        tree = _tree(text)
        return len(self.path) == 1 or tree is None or _find(tree, self.path[-1:]) is None

    def _indented(self, text: str) -> Iterator[str]:
        """A text as it is, and as its author may have meant it to be indented."""
        yield text
        lines = text.split("\n")
        first = next((n for n, line in enumerate(lines) if line.strip()), 0)
        for column in self.columns:  # decoding may take the first line's space
            repaired = " " * column + lines[first].lstrip()
            yield "\n".join([*lines[:first], repaired, *lines[first + 1 :]])
        for column in self.columns:
            yield textwrap.indent(textwrap.dedent(text), " " * column)

    def _grows(self, way: str) -> bool:
        """Whether a text makes more of the definition, or another one."""
        tree = _tree(self.prompt + way) if _compiles(self.prompt + way) else None
        node = None if tree is None else _find(tree, self.path)
        if node is None or self.last is None:
            return False
        return len(node.body) > self.body or node.lineno != self.last.lineno


@lru_cache(maxsize=1024)
def _asked(prompt: str, entry_point: str, test: str) -> _Asked:
    path = _path(entry_point)
    tested = (_names(test) or _Names()).missing
    names = frozenset(path[:1]) or tested
    ending = next((e for e in _endings(prompt) if _tree(prompt + e) is not None), None)
    if ending is None:
        return _Asked(prompt, path, names, tested)
    tree, own = _tree(prompt + ending), _names(prompt + ending) or _Names()
    node = _find(tree, path) if tree is not None and path else None
    if tree is None or node is None:
        return _Asked(prompt, path, names, tested, own.bound, ending)
    added = ending != "\n"  # a ``pass`` that the prompt itself does not have
    stub = added or _is_outline(node)
    within = node.col_offset + 4 if added and len(node.body) == 1 else node.body[0].col_offset
    return _Asked(
        prompt,
        path,
        names if stub else names | own.missing,  # what it defines whole may use what is asked for
        tested,
        own.bound,
        ending,
        stub,
        last=node if _find(ast.Module(tree.body[-1:], []), path) is node else None,
        body=len(node.body) - added,
        columns=(node.col_offset, within) if node.col_offset else (within,),
    )


def _path(entry_point: str) -> tuple[str, ...]:
    """``("Solution", "f")`` for ``Solution().f``."""
    try:
        node = ast.parse(entry_point.strip(), mode="eval").body
    except _NO_PYTHON:
        return ()
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ()
    return (node.id, *reversed(names))


def _endings(prompt: str) -> Iterator[str]:
    """What may close a prompt, wherever it stops."""
    yield "\n"
    lines = [line for line in prompt.split("\n") if line.strip()]
    indents = [line[: len(line) - len(line.lstrip())] for line in lines]
    last = indents[-1] if indents else ""
    handlers = [
        f"{indent}except Exception:\n{indent}    raise\n"
        for indent, line in zip(reversed(indents), reversed(lines), strict=True)
        if line.strip() == "try:"
    ]
    for column in dict.fromkeys((last, f"{last}    ", f"{last}\t", "    ")):
        for count in range(len(handlers) + 1):
            yield f"\n{column}pass\n{''.join(handlers[:count])}\n"


def _split(lines: list[str], asked: _Asked) -> tuple[list[_Piece], list[list[str]]]:
    """The blocks of a completion, and the runs of lines outside of them.

    A completion that begins as a program is one up to its first fence, which then closes it.
    """
    pieces: list[_Piece] = []
    outside: list[list[str]] = [[]]
    at = 0
    first = next((n for n, line in enumerate(lines) if _opening(line) is not None), len(lines))
    begun = next((line for line in lines[:first] if line.strip()), "")
    if _BEGINS.match(begun):
        piece = _open_piece("\n".join(lines[:first]) + "\n", asked)
        if asked.defined_by(piece) != "no" or asked.continued_by(piece) is not None:
            pieces.append(piece)
            at = first
            if first < len(lines) and not lines[first].strip(" \t`~"):
                at += 1
    while at < len(lines):
        opening = _opening(lines[at])
        if opening is None:
            outside[-1].append(lines[at])
            at += 1
            continue
        text, closed, following = _block(lines, at, opening)
        if opening.kind != "other" and text.strip():
            marked = opening.kind == "python"
            if closed:
                pieces.append(_Piece(_dedented(text), marked=marked))
            else:
                pieces.append(_open_piece(_dedented(text), asked, marked=marked))
        outside.append([])
        at = following
    return pieces, outside


@dataclass(frozen=True, slots=True)
class _Opening:
    """A line that opens a block."""

    fence: str
    kind: Literal["python", "unmarked", "other"]
    code: str | None
    """What stands behind the fence and is code already."""
    before: str = ""
    """What stands before it: space, a list's mark, a quotation's."""
    whole: bool = False
    """Whether the line closes the block too."""


def _opening(line: str) -> _Opening | None:
    if "```" not in line and "~~~" not in line:
        return None
    fence = _FENCE.match(line)
    if fence is not None:
        kind, code = _read_info(fence["info"] if fence["ticks"] else fence[5])
        return _Opening(fence["ticks"] or fence["tildes"], kind, code, fence["before"])
    one = _ONE_LINE.match(line)
    if one is not None:
        kind, code = _read_info(one["info"])
        return None if code is None else _Opening("```", kind, code, whole=True)
    behind = _BEHIND_TEXT.match(line)
    if behind is None:
        return None
    kind, code = _read_info(behind["info"])
    if kind == "python" or (not behind["info"].strip() and behind["text"].rstrip().endswith(":")):
        return _Opening("```", kind, code)
    return None


def _read_info(info: str) -> tuple[Literal["python", "unmarked", "other"], str | None]:
    """What a fence is marked as, and the code that stands on its line."""
    info = info.strip()
    read = _INFO.match(info)
    assert read is not None, "it matches any text"
    if _PYTHON.fullmatch(read["braced"] or read["word"] or ""):
        rest = (read["rest"] or "").strip()
        return "python", rest if _STARTS.match(rest) else None
    if not info or _STARTS.match(info):
        return "unmarked", info or None
    return "other", None


def _block(lines: list[str], at: int, opening: _Opening) -> tuple[str, bool, int]:
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
            if _tree(textwrap.dedent(found[0])) is not None:
                return found
        elif opening.fence in line and opening.kind != "other" and attempts < _FENCES:
            last = line.partition(opening.fence)[0]
            text = "\n".join([*content, last]) + "\n"
            attempts += 1
            if "#" not in last and _tree(textwrap.dedent(text)) is not None:
                return text, True, n + 1
        content.append(re.sub(rf"^[ \t]{{0,{room}}}", "", line) if room else line)
    return first or ("\n".join(content), False, len(lines))


def _dedented(text: str) -> str:
    """A block in a list is indented as a whole; one that goes on in mid-function is not."""
    if not text.lstrip("\n")[:1].isspace():
        return text
    dedented = textwrap.dedent(text)
    return dedented if _DEFINES.search(dedented) else text


def _outside(runs: list[list[str]], asked: _Asked) -> list[_Piece]:
    """Programs that stand in a text without fences."""
    pieces: list[_Piece] = []
    for lines in runs:
        at = 0
        while at < len(lines):
            if _STARTS.match(lines[at]) and len(pieces) < _ATTEMPTS:
                piece = _open_piece("\n".join(lines[at:]) + "\n", asked)
                if piece.text:
                    pieces.append(piece)
                    at += piece.text.count("\n")
                    continue
            at += 1
    return pieces


def _open_piece(raw: str, asked: _Asked, *, marked: bool = False) -> _Piece:
    """A piece whose end nothing marks: it ends with its last line that parses."""
    piece = _Piece(raw, marked=marked, open_end=True)
    if len(raw) <= _LONG:
        piece.text = _compiling("", raw, asked.names)
    return piece


def _compiling(before: str, text: str, names: frozenset[str]) -> str:
    """The lines at the beginning of ``text`` that compile behind ``before``, as many as there are.

    A statement that breaks off is left out where it defines one of ``names`` once more. So is a
    lone word at the end, such as a heading: it is no code.
    """
    lines = text.split("\n")
    base = before.count("\n")
    count = len(lines)
    for _ in range(_ATTEMPTS):
        while count and not lines[count - 1].strip():
            count -= 1
        if count == 0:
            return ""
        try:
            _check(before + "\n".join(lines[:count]) + "\n")
            break
        except SyntaxError as error:
            at = (error.lineno or 0) - base
            count = min(count, at) - 1 if at > 0 else 0
            count = max(count, 0)
        except _NO_PYTHON:
            return ""
    else:
        return ""
    tree = _tree(before + "\n".join(lines[:count]) + "\n")
    rest = next((line for line in lines[count:] if line.strip()), "")
    *others, last = tree.body if tree is not None and tree.body else [ast.Pass()]
    again = names & _made(last)
    if rest[:1].isspace() and again and any(again & _made(other) for other in others):
        count = _first_line(last) - 1 - base
    elif others and isinstance(last, ast.Expr) and isinstance(last.value, ast.Name):
        count = last.lineno - 1 - base
    return "\n".join(lines[:count]).rstrip("\n") + "\n"


def _breaks_off(piece: _Piece, names: frozenset[str]) -> bool:
    """Whether a piece ends within the definition of one of ``names``."""
    rest = piece.raw[len(piece.text) :].lstrip("\n")
    tree = piece.tree
    return rest[:1].isspace() and tree is not None and bool(names & _made(tree.body[-1]))


def _whole(asked: _Asked, pieces: Sequence[_Piece], chosen: int) -> Program:
    """The chosen piece, with those that it needs, as a program behind the closed prompt."""
    joined = [pieces[n] for n in _needed(asked, pieces, chosen)]
    code = _joined(piece.text for piece in joined)
    defines = asked.defined_by(pieces[chosen]) != "no"
    before, behind = _without_future(joined)
    if asked.prompt.strip():
        # Where it is not written, the stub must not stand for it.
        gone = f"del {asked.path[0]}\n" if asked.stub and not defines else ""
        behind = f"{asked.ending}{gone}{behind}"
    return Program(code, before, behind)


def _continued(asked: _Asked, pieces: Sequence[_Piece], chosen: int, behind: str) -> Program:
    """The chosen piece where the prompt stops, and then those that it needs."""
    whole = _Piece(asked.prompt + behind)
    others = [*pieces[:chosen], whole, *pieces[chosen + 1 :]]
    needed = [n for n in _needed(asked, others, chosen) if n != chosen]
    before, rest = _without_future([others[n] for n in needed])
    return Program(
        _joined([behind, *(others[n].text for n in needed)]),
        before,
        _joined([behind, rest]) if needed else behind,
    )


def _needed(asked: _Asked, pieces: Sequence[_Piece], chosen: int) -> list[int]:
    """The chosen piece, and those that define what it or the tests have from nowhere else."""
    taken = {chosen}
    bound = asked.own | pieces[chosen].names.bound
    missing = asked.tested | pieces[chosen].names.missing
    others = [*reversed(range(chosen)), *range(chosen + 1, len(pieces))]
    while wanted := missing - bound:
        found = [n for n in others if n not in taken and pieces[n].names.bound & wanted]
        # A test behind the solution may import it.
        found = [n for n in found if n < chosen or not pieces[n].names.bound & asked.names]
        if not found:
            break
        taken.add(found[0])
        bound |= pieces[found[0]].names.bound
        missing |= pieces[found[0]].names.missing
    return sorted(taken)


def _joined(texts: Iterable[str]) -> str:
    first, *others = texts
    return "".join([first, *(f"\n{text}" for text in others)])


def _without_future(pieces: Sequence[_Piece]) -> tuple[str, str]:
    """The statements that only the first lines of a file may hold, and the program without them.

    The lines keep their numbers, but for those of joined pieces.
    """
    features: set[str] = set()
    texts = []
    for piece in pieces:
        lines = [line.encode("utf-8", "surrogatepass") for line in piece.text.split("\n")]
        for node in reversed(piece.tree.body if piece.tree is not None else []):
            if not isinstance(node, ast.ImportFrom) or node.module != "__future__":
                continue
            named = {alias.name for alias in node.names}
            if not named <= set(__future__.all_feature_names):
                continue
            features |= named
            start, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            tail = lines[end][node.end_col_offset or 0 :]
            lines[start] = lines[start][: node.col_offset] + b"pass" + tail
            lines[start + 1 : end + 1] = [b""] * (end - start)
        texts.append(b"\n".join(lines).decode("utf-8", "surrogatepass"))
    before = f"from __future__ import {', '.join(sorted(features))}\n" if features else ""
    return before, _joined(texts or [""])


@lru_cache(maxsize=32)
def _tree(source: str) -> ast.Module | None:
    """The syntax tree, or ``None`` where there is none or the source is long."""
    if len(source) > 2 * _LONG:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            return ast.parse(source)
    except _NO_PYTHON:
        return None


def _check(source: str) -> None:
    """Raise where a source does not compile, which a ``return`` outside of a function does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(source, "<completion>", "exec", dont_inherit=True)


@lru_cache(maxsize=32)
def _compiles(source: str) -> bool:
    try:
        _check(source)
    except _NO_PYTHON:
        return False
    return True


@lru_cache(maxsize=32)
def _names(source: str) -> _Names | None:
    """The global names of a program, or ``None`` where it does not compile."""
    if len(source) > 2 * _LONG:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(source, "<completion>", "exec")
    except _NO_PYTHON:
        return None
    made, imported, used = set(), set(), set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        for symbol in table.get_symbols():
            if table is not top and not symbol.is_global():
                continue
            if symbol.is_imported():
                imported.add(symbol.get_name())
            elif symbol.is_assigned() or (table is top and symbol.is_namespace()):
                made.add(symbol.get_name())
            if symbol.is_referenced():
                used.add(symbol.get_name())
        waiting += table.get_children()
    return _Names(frozenset(made), frozenset(imported), frozenset(used))


def _writes(name: str, text: str) -> bool:
    """Whether a text that is no Python seems to define a name."""
    named = re.escape(name)
    pattern = rf"^(?:(?:async[ \t]+def|def|class)[ \t]+{named}\b|{named}[ \t]*(?::[^=\n]+)?=(?!=))"
    return re.search(pattern, text, re.MULTILINE) is not None


def _made(node: ast.stmt) -> frozenset[str]:
    """The names that one statement defines."""
    if isinstance(node, _Definition):
        return frozenset((node.name,))
    targets = node.targets if isinstance(node, ast.Assign) else []
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, _Definition) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _find(tree: ast.Module | ast.ClassDef, path: Sequence[str]) -> _Definition | None:
    """The last definition of a name, or of a name in the class of that name, and so on."""
    found: _Definition | None = None
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, _Definition):
            if node.name == path[0]:
                found = node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            waiting[:0] = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    if len(path) > 1:
        return _find(found, path[1:]) if isinstance(found, ast.ClassDef) else None
    return found


def _is_outline(node: ast.AST | None) -> bool:
    """Whether a definition says nothing: a docstring, ``pass``, ``...`` or "not implemented"."""
    if not isinstance(node, _Definition):
        return False
    return all(
        isinstance(part, ast.Pass)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Raise) and "NotImplemented" in ast.dump(part))
        or (isinstance(node, ast.ClassDef) and _is_outline(part))
        for part in node.body
    )
