"""Extraction of the program from a completion, joined with the prompt that it answers.

Which part of a completion is the program depends on the problem's prompt, tests and entry point: of
several blocks the last that defines the entry point, with the blocks that it depends on; else the
text that continues the prompt, as a base model writes it. No code is executed here.
"""

from __future__ import annotations
import __future__

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Literal

from fttt.verifiers.answer_extraction import after_thought
from fttt.verifiers.python_source import (
    CODE_LINE,
    CODE_START,
    DEFINITION,
    GIVEN_MODULES,
    LONG,
    Definition,
    Names,
    compiles,
    compiling_lines,
    find_definition,
    global_names,
    is_outline,
    made_by,
    name_path,
    syntax_tree,
    writes,
)

__all__ = ["Program", "find_program"]

_PROGRAMS = 100
"""Lines of a text without fences at which a program may be searched."""
_BEGINS = re.compile(
    rf"{CODE_LINE}|#|\"\"\"|'''|[ \t]+\S|(?:return|yield|raise|for|while|if|with|try|assert)\b"
    r"|[^\W\d][\w.]*(?:\(|\[.*\][ \t]*=|[ \t]*(?:[-+*/%&|^]|//|\*\*|<<|>>)=)"
)
"""The beginning of a completion that is code, or continues code, from its first line."""
_TAGS = re.compile(r"^[ \t]*\[(?:(PYTHON|CODE|BEGIN)|/PYTHON|/CODE|DONE|END)\][ \t]*$", re.M)
"""Marks of few-shot prompts and of Code Llama that replace fences."""
_STOP = re.compile(
    r"(?:<[|\uff5c](?:end[^|\uff5c<>\n]{0,20}|eo[tsmd](?:_id)?|return|im_end|fim_\w+)[|\uff5c]>"
    r"|<end_of_turn>|<eos>)(?![\"'])|</s>(?=\s*(?:\Z|<s>|\[INST\]))|(?<=```)</s>",
    re.IGNORECASE,
)
"""A stop token that was decoded as text; the answer ends there."""


_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0|\bfileinput\b|\bos\.read\s*\(")
_PRINTS = re.compile(r"\bprint\s*\(|\bstdout\b|\bos\.write\s*\(")
"""What a program uses that reads standard input, and that prints."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program in a completion, and the text to put around the prompt to run it."""

    code: str
    """Its text, the blocks that it depends on included."""
    before: str
    """Text before the prompt: ``from __future__`` statements, or nothing."""
    behind: str
    """Text behind the prompt."""


def find_program(
    completion: str,
    *,
    prompt: str = "",
    entry_point: str = "",
    test: str = "",
    stdin: bool = False,
) -> Program | None:
    """The program in a completion, or ``None`` without one.

    Thoughts are skipped. Where no text defines the required names or continues the prompt, the last
    program counts, which then defines too little.

    Args:
        completion: the model's text.
        prompt: the code before the program.
        entry_point: the expression that the tests get, such as ``f`` or ``Solution().f``; without
            one, the names that the tests use and do not define are required.
        test: the tests, which may also use other names of the program.
        stdin: whether the program is one that reads standard input and prints.
    """
    said = after_thought(completion.replace("\r\n", "\n"))
    if said is None:
        return None
    required = replace(_requirement(prompt, entry_point, test), stdin=stdin)
    said = _TAGS.sub(lambda tag: "```python" if tag[1] else "```", _STOP.split(said, maxsplit=1)[0])
    blocks, texts = _split_blocks(said.split("\n"), required)
    found = _select(required, blocks)
    if found is not None:
        return found
    others = _programs_outside(texts, required)
    found = _select(required, others)
    if found is not None:
        return found
    for pieces in (blocks, others):
        partly = [n for n, piece in enumerate(pieces) if required.defined_by(piece) == "partly"]
        programs = [n for n, piece in enumerate(pieces) if piece.is_program]
        if partly or programs:
            return _as_program(required, pieces, (partly or programs)[-1])
    return None


def _select(required: _Requirement, pieces: Sequence[_Piece]) -> Program | None:
    """The program of the last piece with a required name, else of one that continues the prompt."""
    whole = [n for n, piece in enumerate(pieces) if required.defined_by(piece) == "whole"]
    if whole:
        return _as_program(required, pieces, whole[-1])
    for n in reversed(range(len(pieces))):
        behind = required.continued_by(pieces[n])
        if behind is not None:
            return _as_continuation(required, pieces, n, behind)
    return None


class _Piece:
    """A part of a completion that may be the program, or a part of it."""

    def __init__(self, text: str, *, marked: bool = False, open_end: bool = False) -> None:
        self.raw = text
        self.marked = marked
        """Whether its fence is marked as Python."""
        self.open_end = open_end
        """Whether its end is unmarked, so that it ends with its last line that parses."""
        self.text = text

    @property
    def is_program(self) -> bool:
        """Whether it looks like a program."""
        return self.marked or bool(DEFINITION.search(self.text))

    @cached_property
    def tree(self) -> ast.Module | None:
        return syntax_tree(self.text)

    @cached_property
    def names(self) -> Names:
        return global_names(self.text) or Names()


@dataclass(frozen=True)
class _Requirement:
    """The names that a problem requires, and the state in which its prompt ends."""

    prompt: str
    path: tuple[str, ...] = ()
    """The entry point's name and those of its attributes, from the outside in."""
    names: frozenset[str] = frozenset()
    """A program defines at least one of them."""
    tested: frozenset[str] = frozenset()
    """Names that the tests use without a definition."""
    own: frozenset[str] = frozenset()
    """Names that the prompt binds."""
    ending: str = "\n"
    """Text that completes the prompt, so that a new statement may follow."""
    stub: bool = False
    """Whether the prompt has the entry point's signature without its body."""
    last: Definition | None = None
    """The entry point's definition, where the prompt ends with it and can be continued."""
    body: int = 0
    """Statements in its body."""
    columns: tuple[int, ...] = ()
    """Columns of its body and of its class's body."""
    stdin: bool = False
    """Whether no name is required but a program that reads and prints."""

    def defined_by(self, piece: _Piece) -> Literal["whole", "partly", "no"]:
        """Whether a piece defines a required name: at all, and more than in outline."""
        if self.stdin:
            if piece.tree is None and not piece.marked:
                return "no"
            if not _PRINTS.search(piece.text):
                return "no"
            return "whole" if _READS.search(piece.text) else "partly"
        if piece.tree is None or global_names(piece.text) is None:
            if not any(writes(name, piece.text) for name in self.names):
                return "no"
            outline = syntax_tree(f"{piece.text.rstrip()}\n    pass\n") is not None
            return "partly" if outline or piece.open_end else "whole"
        made = piece.names.made & self.names
        if not made:
            return "partly" if piece.names.imported & self.names else "no"
        broken_off = piece.open_end and _breaks_off(piece, made)
        outline = all(is_outline(find_definition(piece.tree, (name,))) for name in made)
        return "partly" if outline or broken_off else "whole"

    def continued_by(self, piece: _Piece) -> str | None:
        """The text of a piece that continues the prompt; ``None`` if it does not."""
        if self.last is None or len(piece.raw) > LONG or self._stands_alone(piece.raw):
            return None
        starts = ("",) if self.prompt.endswith("\n") else ("", "\n")
        candidates = [start + text for text in self._indented(piece.raw) for start in starts]
        if piece.open_end:
            candidates = [
                compiling_lines(self.prompt, text, frozenset(self.path[:1])) for text in candidates
            ]
        candidates = [text for text in candidates if self._extends_definition(text)]
        return max(
            candidates, key=lambda text: text.count("\n"), default=None
        )  # the first of equals

    def _stands_alone(self, text: str) -> bool:
        """Whether a text is a complete program or empty, and no method without its class."""
        if not text.strip():
            return True
        if text.lstrip("\n")[0].isspace() or not compiles(text):
            return False
        tree = syntax_tree(text)
        return len(self.path) == 1 or tree is None or find_definition(tree, self.path[-1:]) is None

    def _indented(self, text: str) -> Iterator[str]:
        """A text as written, and in the indentations that its author may have meant."""
        yield text
        lines = text.split("\n")
        first = next((n for n, line in enumerate(lines) if line.strip()), 0)
        for column in self.columns:  # decoding may take the first line's space
            repaired = " " * column + lines[first].lstrip()
            yield "\n".join([*lines[:first], repaired, *lines[first + 1 :]])
        for column in self.columns:
            yield textwrap.indent(textwrap.dedent(text), " " * column)

    def _extends_definition(self, candidate: str) -> bool:
        """Whether a text behind the prompt extends the definition, or adds another one."""
        tree = syntax_tree(self.prompt + candidate) if compiles(self.prompt + candidate) else None
        node = None if tree is None else find_definition(tree, self.path)
        if node is None or self.last is None:
            return False
        return len(node.body) > self.body or node.lineno != self.last.lineno


@lru_cache(maxsize=1024)
def _requirement(prompt: str, entry_point: str, test: str) -> _Requirement:
    path = name_path(entry_point)
    tested = (global_names(test) or Names()).missing - GIVEN_MODULES
    names = frozenset(path[:1]) or tested
    ending = next((e for e in _endings(prompt) if syntax_tree(prompt + e) is not None), None)
    if ending is None:
        return _Requirement(prompt, path, names, tested)
    tree, own = syntax_tree(prompt + ending), global_names(prompt + ending) or Names()
    node = find_definition(tree, path) if tree is not None and path else None
    if tree is None or node is None:
        return _Requirement(prompt, path, names, tested, own.bound, ending)
    added = ending != "\n"  # a ``pass`` that the prompt itself does not have
    stub = added or is_outline(node)
    within = node.col_offset + 4 if added and len(node.body) == 1 else node.body[0].col_offset
    return _Requirement(
        prompt,
        path,
        names if stub else names | own.missing,  # a complete prompt may call a required name
        tested,
        own.bound,
        ending,
        stub,
        last=node if find_definition(ast.Module(tree.body[-1:], []), path) is node else None,
        body=len(node.body) - added,
        columns=(node.col_offset, within) if node.col_offset else (within,),
    )


def _endings(prompt: str) -> Iterator[str]:
    """Texts that may complete a prompt, wherever it stops."""
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


def _split_blocks(lines: list[str], required: _Requirement) -> tuple[list[_Piece], list[list[str]]]:
    """The blocks of a completion, and the runs of lines outside of them.

    A completion that begins with code is a block up to its first fence, which then closes it.
    """
    pieces: list[_Piece] = []
    outside: list[list[str]] = [[]]
    at = 0
    first = next(
        (n for n, line in enumerate(lines) if _opening_fence(line) is not None), len(lines)
    )
    begun = next((line for line in lines[:first] if line.strip()), "")
    if _BEGINS.match(begun):
        piece = _open_piece("\n".join(lines[:first]) + "\n", required)
        if required.defined_by(piece) != "no" or required.continued_by(piece) is not None:
            pieces.append(piece)
            at = first
            if first < len(lines) and not lines[first].strip(" \t`~"):
                at += 1
    while at < len(lines):
        opening = _opening_fence(lines[at])
        if opening is None:
            outside[-1].append(lines[at])
            at += 1
            continue
        text, closed, following = _read_block(lines, at, opening)
        if opening.kind != "other" and text.strip():
            marked = opening.kind == "python"
            if closed:
                pieces.append(_Piece(_dedented(text), marked=marked))
            else:
                pieces.append(_open_piece(_dedented(text), required, marked=marked))
        outside.append([])
        at = following
    return pieces, outside


def _programs_outside(runs: list[list[str]], required: _Requirement) -> list[_Piece]:
    """Programs in text without fences, or indented as a whole."""
    pieces: list[_Piece] = []
    tried = 0
    for lines in runs:
        at = 0
        while at < len(lines):
            code = lines[at].lstrip()
            indent = lines[at][: len(lines[at]) - len(code)]
            starts = DEFINITION.match(code) if indent else CODE_START.match(code)
            if starts and tried < _PROGRAMS:
                tried += 1
                piece = _open_piece(_indented_by(indent, lines[at:]), required)
                if piece.text:
                    pieces.append(piece)
                    at += piece.text.count("\n")
                    continue
            at += 1
    return pieces


def _indented_by(indent: str, lines: Sequence[str]) -> str:
    """The first lines with this indentation, without it."""
    within = takewhile(lambda line: line.startswith(indent) or not line.strip(), lines)
    return textwrap.dedent("\n".join(within)) + "\n"


def _open_piece(raw: str, required: _Requirement, *, marked: bool = False) -> _Piece:
    """A piece with an unmarked end: it ends with its last line that parses."""
    piece = _Piece(raw, marked=marked, open_end=True)
    if len(raw) <= LONG:
        piece.text = compiling_lines("", raw, required.names)
    return piece


def _breaks_off(piece: _Piece, names: frozenset[str]) -> bool:
    """Whether a piece ends within the definition of one of ``names``."""
    rest = piece.raw[len(piece.text) :].lstrip("\n")
    tree = piece.tree
    return rest[:1].isspace() and tree is not None and bool(names & made_by(tree.body[-1]))


def _as_program(required: _Requirement, pieces: Sequence[_Piece], chosen: int) -> Program:
    """The chosen piece and its dependencies as a program behind the completed prompt."""
    joined = [pieces[n] for n in _with_dependencies(required, pieces, chosen)]
    code = _joined(piece.text for piece in joined)
    defines = required.defined_by(pieces[chosen]) != "no"
    before, behind = _without_future(joined)
    if required.prompt.strip():
        # The prompt's stub must not count as the missing definition.
        gone = f"del {required.path[0]}\n" if required.stub and not defines else ""
        behind = f"{required.ending}{gone}{behind}"
    return Program(code, before, behind)


def _as_continuation(
    required: _Requirement, pieces: Sequence[_Piece], chosen: int, behind: str
) -> Program:
    """The chosen piece as the prompt's continuation, followed by its dependencies."""
    whole = _Piece(required.prompt + behind)
    others = [*pieces[:chosen], whole, *pieces[chosen + 1 :]]
    needed = [n for n in _with_dependencies(required, others, chosen) if n != chosen]
    before, rest = _without_future([others[n] for n in needed])
    return Program(
        _joined([behind, *(others[n].text for n in needed)]),
        before,
        _joined([behind, rest]) if needed else behind,
    )


def _with_dependencies(required: _Requirement, pieces: Sequence[_Piece], chosen: int) -> list[int]:
    """The chosen piece, and the pieces that define the names that it and the tests lack."""
    taken = {chosen}
    bound = required.own | pieces[chosen].names.bound
    missing = required.tested | pieces[chosen].names.missing
    others = [*reversed(range(chosen)), *range(chosen + 1, len(pieces))]
    while wanted := missing - bound:
        found = [n for n in others if n not in taken and pieces[n].names.bound & wanted]
        # A test behind the solution may import it.
        found = [n for n in found if n < chosen or not pieces[n].names.bound & required.names]
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
    """The ``from __future__`` statements of a program, and the program without them.

    Lines keep their numbers within the first piece.
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


# ---- Markdown blocks

_FENCES = 8
"""Fences inside a block that may be text, before a block that does not parse is closed."""

_BEFORE = r"(?P<before>[ \t]*(?:>[ \t]?)*[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)"
_FENCE = re.compile(rf"{_BEFORE}(?:(?P<ticks>`{{3,}})(?P<info>[^`]*)|(?P<tildes>~{{3,}})(.*))$")
_ONE_LINE = re.compile(r"[ \t]*`{3,}(?P<info>[^`]+)`{3,}[ \t]*$")
_BEHIND_TEXT = re.compile(r"(?P<text>(?:[^`]|`{1,2}(?!`)|```[^`]*```)*\S[ \t]*)```(?P<info>[^`]*)$")
_INFO = re.compile(r"\{[ \t]*\.?(?P<braced>[\w+#-]*)[^}]*\}|(?P<word>[^\s{]*)(?P<rest>.*)", re.S)
_PYTHON = re.compile(r"(?:i?python|py)-?[\d.]*(?:[:,].*)?|.*\.py|tool_code", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Fence:
    """A line that opens a block: its fence and the text around it."""

    fence: str
    kind: Literal["python", "unmarked", "other"]
    code: str | None
    """Code behind the fence, on its line."""
    before: str = ""
    """Text before the fence: space, the mark of a list or a quotation."""
    whole: bool = False
    """Whether the line closes the block too."""


def _opening_fence(line: str) -> _Fence | None:
    """The block that a line opens, if any."""
    if "```" not in line and "~~~" not in line:
        return None
    fence = _FENCE.match(line)
    if fence is not None:
        kind, code = _read_info(fence["info"] if fence["ticks"] else fence[5])
        return _Fence(fence["ticks"] or fence["tildes"], kind, code, fence["before"])
    one = _ONE_LINE.match(line)
    if one is not None:
        kind, code = _read_info(one["info"])
        return None if code is None else _Fence("```", kind, code, whole=True)
    behind = _BEHIND_TEXT.match(line)
    if behind is None:
        return None
    kind, code = _read_info(behind["info"])
    if kind == "python" or (not behind["info"].strip() and behind["text"].rstrip().endswith(":")):
        return _Fence("```", kind, code)
    return None


def _read_info(info: str) -> tuple[Literal["python", "unmarked", "other"], str | None]:
    """The kind of a block by the text behind its fence, and the code there."""
    info = info.strip()
    read = _INFO.match(info)
    assert read is not None, "it matches any text"
    if _PYTHON.fullmatch(read["braced"] or read["word"] or ""):
        rest = (read["rest"] or "").strip()
        return "python", rest if CODE_START.match(rest) else None
    if not info or CODE_START.match(info):
        return "unmarked", info or None
    return "other", None


def _read_block(lines: list[str], at: int, opening: _Fence) -> tuple[str, bool, int]:
    """The text of the block that a line opens, whether it is closed, and the line behind it.

    A fence closes the block if the lines before it parse, so a fence in a string of the program
    does not. If they never parse, the first fence closes it.
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


def _dedented(text: str) -> str:
    """A block without the indentation of its list; the body of a function keeps its own.

    A first line that only names the language belongs to the fence.
    """
    first, _, rest = text.partition("\n")
    if _PYTHON.fullmatch(first.strip()):
        text = rest
    if not text.lstrip("\n")[:1].isspace():
        return text
    dedented = textwrap.dedent(text)
    return dedented if DEFINITION.search(dedented) else text
