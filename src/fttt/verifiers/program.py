"""The program in what a model wrote, put together with the prompt that it answers.

What counts as the program depends on what is asked for, so it is looked for with the prompt, the
tests and the entry point in hand: of several blocks the last that defines the entry point, with
the blocks that it needs; else what goes on where the prompt stops, as a base model writes.
Nothing here runs anything.
"""

from __future__ import annotations
import __future__

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Literal

from fttt.verifiers.fences import dedented, opened_by, read_block
from fttt.verifiers.source import (
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
from fttt.verifiers.thought import after_thought

__all__ = ["Program", "find_program"]

_PROGRAMS = 100
"""How many lines of a text without fences are taken for the beginning of one."""
_BEGINS = re.compile(
    rf"{CODE_LINE}|#|\"\"\"|'''|[ \t]+\S|(?:return|yield|raise|for|while|if|with|try|assert)\b"
    r"|[^\W\d][\w.]*(?:\(|\[.*\][ \t]*=|[ \t]*(?:[-+*/%&|^]|//|\*\*|<<|>>)=)"
)
"""How a completion begins that is a program from its first line on, or goes on with one."""
_TAGS = re.compile(r"^[ \t]*\[(?:(PYTHON|CODE|BEGIN)|/PYTHON|/CODE|DONE|END)\][ \t]*$", re.M)
"""Marks of few-shot prompts and of Code Llama that stand for fences."""
_STOP = re.compile(
    r"(?:<[|\uff5c](?:end[^|\uff5c<>\n]{0,20}|eo[tsmd](?:_id)?|return|im_end|fim_\w+)[|\uff5c]>"
    r"|<end_of_turn>|<eos>)(?![\"'])|</s>(?=\s*(?:\Z|<s>|\[INST\]))|(?<=```)</s>",
    re.IGNORECASE,
)
"""A stop token that was decoded as text; what follows it is no answer."""


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
    found = _chosen(asked, blocks)
    if found is not None:
        return found
    others = _outside(texts, asked)
    found = _chosen(asked, others)
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
        return self.marked or bool(DEFINITION.search(self.text))

    @cached_property
    def tree(self) -> ast.Module | None:
        return syntax_tree(self.text)

    @cached_property
    def names(self) -> Names:
        return global_names(self.text) or Names()


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
    last: Definition | None = None
    """The entry point's definition, where the prompt ends with it and may go on."""
    body: int = 0
    """Statements in its body."""
    columns: tuple[int, ...] = ()
    """Where its body, and that of its class, go on."""

    def defined_by(self, piece: _Piece) -> Literal["whole", "partly", "no"]:
        """Whether a piece defines what is asked for: at all, and more than in outline."""
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
        """A piece as it goes on where the prompt stops, where it does."""
        if self.last is None or len(piece.raw) > LONG or self._stands_alone(piece.raw):
            return None
        starts = ("",) if self.prompt.endswith("\n") else ("", "\n")
        ways = [start + text for text in self._indented(piece.raw) for start in starts]
        if piece.open_end:
            ways = [compiling_lines(self.prompt, way, frozenset(self.path[:1])) for way in ways]
        ways = [way for way in ways if self._grows(way)]
        return max(ways, key=lambda way: way.count("\n"), default=None)  # the first of equals

    def _stands_alone(self, text: str) -> bool:
        """Whether a text is a program, or nothing, and not a method without its class."""
        if not text.strip():
            return True
        if text.lstrip("\n")[0].isspace() or not compiles(text):
            return False
        tree = syntax_tree(text)
        return len(self.path) == 1 or tree is None or find_definition(tree, self.path[-1:]) is None

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
        tree = syntax_tree(self.prompt + way) if compiles(self.prompt + way) else None
        node = None if tree is None else find_definition(tree, self.path)
        if node is None or self.last is None:
            return False
        return len(node.body) > self.body or node.lineno != self.last.lineno


@lru_cache(maxsize=1024)
def _asked(prompt: str, entry_point: str, test: str) -> _Asked:
    path = name_path(entry_point)
    tested = (global_names(test) or Names()).missing - GIVEN_MODULES
    names = frozenset(path[:1]) or tested
    ending = next((e for e in _endings(prompt) if syntax_tree(prompt + e) is not None), None)
    if ending is None:
        return _Asked(prompt, path, names, tested)
    tree, own = syntax_tree(prompt + ending), global_names(prompt + ending) or Names()
    node = find_definition(tree, path) if tree is not None and path else None
    if tree is None or node is None:
        return _Asked(prompt, path, names, tested, own.bound, ending)
    added = ending != "\n"  # a ``pass`` that the prompt itself does not have
    stub = added or is_outline(node)
    within = node.col_offset + 4 if added and len(node.body) == 1 else node.body[0].col_offset
    return _Asked(
        prompt,
        path,
        names if stub else names | own.missing,  # what it defines whole may use what is asked for
        tested,
        own.bound,
        ending,
        stub,
        last=node if find_definition(ast.Module(tree.body[-1:], []), path) is node else None,
        body=len(node.body) - added,
        columns=(node.col_offset, within) if node.col_offset else (within,),
    )


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
    first = next((n for n, line in enumerate(lines) if opened_by(line) is not None), len(lines))
    begun = next((line for line in lines[:first] if line.strip()), "")
    if _BEGINS.match(begun):
        piece = _open_piece("\n".join(lines[:first]) + "\n", asked)
        if asked.defined_by(piece) != "no" or asked.continued_by(piece) is not None:
            pieces.append(piece)
            at = first
            if first < len(lines) and not lines[first].strip(" \t`~"):
                at += 1
    while at < len(lines):
        opening = opened_by(lines[at])
        if opening is None:
            outside[-1].append(lines[at])
            at += 1
            continue
        text, closed, following = read_block(lines, at, opening)
        if opening.kind != "other" and text.strip():
            marked = opening.kind == "python"
            if closed:
                pieces.append(_Piece(dedented(text), marked=marked))
            else:
                pieces.append(_open_piece(dedented(text), asked, marked=marked))
        outside.append([])
        at = following
    return pieces, outside


def _outside(runs: list[list[str]], asked: _Asked) -> list[_Piece]:
    """Programs that stand in a text without fences, or are indented as a whole."""
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
                piece = _open_piece(_indented_by(indent, lines[at:]), asked)
                if piece.text:
                    pieces.append(piece)
                    at += piece.text.count("\n")
                    continue
            at += 1
    return pieces


def _indented_by(indent: str, lines: Sequence[str]) -> str:
    """The first lines that are indented so, without that."""
    within = takewhile(lambda line: line.startswith(indent) or not line.strip(), lines)
    return textwrap.dedent("\n".join(within)) + "\n"


def _open_piece(raw: str, asked: _Asked, *, marked: bool = False) -> _Piece:
    """A piece whose end nothing marks: it ends with its last line that parses."""
    piece = _Piece(raw, marked=marked, open_end=True)
    if len(raw) <= LONG:
        piece.text = compiling_lines("", raw, asked.names)
    return piece


def _breaks_off(piece: _Piece, names: frozenset[str]) -> bool:
    """Whether a piece ends within the definition of one of ``names``."""
    rest = piece.raw[len(piece.text) :].lstrip("\n")
    tree = piece.tree
    return rest[:1].isspace() and tree is not None and bool(names & made_by(tree.body[-1]))


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
