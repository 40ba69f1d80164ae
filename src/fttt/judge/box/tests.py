"""A problem's tests, analysed, instrumented and compiled once for all submissions to it.

The first box that a problem gets prepares its tests before its submission is run, and leaves them
to the service; later boxes load them. Nothing of a submission is in what they load.
"""

from __future__ import annotations

import ast
import json
import marshal
import os
import struct
import types
from dataclasses import dataclass
from typing import Any

from .analysis import Analysis, analyse
from .score import Statement, instrument

__all__ = ["BadTests", "Tests", "is_prepared", "run_prompt"]

_HEAD = struct.Struct(">5sI")
"""What a file of prepared tests begins with: a word and the bytes that follow."""
_WORD = b"tests"
_MOST = 1 << 20
"""The bytes of prepared tests that are kept; what is larger is prepared again by each box."""


class BadTests(Exception):  # noqa: N818
    """The problem is at fault, not the submission."""


@dataclass
class Tests:
    """What a tester needs of a problem."""

    __test__ = False  # no class of tests, whatever pytest makes of its name

    prompt: str
    source: str
    call: str
    """The call of ``check``."""
    shared: bool
    """Whether tests and submission have to share one process."""
    analysis: Analysis
    steps: list[Statement]
    code: types.CodeType
    """The tests, instrumented."""
    check: types.CodeType
    helpers: types.CodeType | None
    """What the prompt defines."""
    last: str | None
    """The class or function that the prompt ends in."""

    @classmethod
    def read(cls, file: int) -> Tests:
        """The tests in a file, which may be only a problem's JSON: then they are prepared now.

        The file holds them prepared afterwards. Raises :class:`BadTests` where they do not compile.
        """
        content = _read(file)
        if is_prepared(content):
            return cls._load(content[_HEAD.size :])
        tests = cls.prepare(json.loads(content))
        data = tests._dump()
        if len(data) <= _MOST:
            os.ftruncate(file, 0)
            os.pwrite(file, _HEAD.pack(_WORD, len(data)) + data, 0)
        return tests

    @classmethod
    def prepare(cls, program: dict[str, str]) -> Tests:
        """Prepare a problem's tests; raises :class:`BadTests` where they do not compile."""
        prompt, source = program["prompt"], program["test"]
        call = f"check({program['entry_point']})"
        try:
            tree = ast.parse(source, "<tests>")
            expression = ast.parse(call, "<check>", "eval")
            helpers = _parse_prompt(prompt)
            defined = _defined(helpers) if helpers is not None else set()
            compiled = None if helpers is None else _compile_prompt(helpers)
            analysis = analyse(tree, source, expression.body, defined)
            steps = instrument(tree, source, analysis.entry).steps
            code = compile(tree, "<tests>", "exec", dont_inherit=True)
            check = compile(expression, "<check>", "eval", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise BadTests(f"the problem's tests do not compile: {error}") from error
        return cls(
            prompt,
            source,
            call,
            program["border"] == "shared" or analysis.together is not None,
            analysis,
            steps,
            code,
            check,
            compiled,
            _last_name(helpers),
        )

    def _dump(self) -> bytes:
        steps = [step.fixed() for step in self.steps]
        return marshal.dumps({**vars(self), "analysis": vars(self.analysis), "steps": steps})

    @classmethod
    def _load(cls, data: bytes) -> Tests:
        fields: dict[str, Any] = marshal.loads(data)
        fields["analysis"] = Analysis(**fields["analysis"])
        fields["steps"] = [Statement(*step) for step in fields["steps"]]
        return cls(**fields)


def is_prepared(content: bytes) -> bool:
    """Whether a file holds prepared tests, and all of them."""
    if not content.startswith(_WORD) or len(content) < _HEAD.size:
        return False
    return len(content) == _HEAD.size + int(_HEAD.unpack_from(content)[1])


def _read(file: int) -> bytes:
    size = os.fstat(file).st_size
    parts: list[bytes] = []
    while size and (part := os.pread(file, size, sum(map(len, parts)))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _last_name(tree: ast.Module | None) -> str | None:
    return getattr(tree.body[-1], "name", None) if tree is not None and tree.body else None


def _defined(tree: ast.Module) -> set[str]:
    """The global names of a program."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def run_prompt(prompt: str, space: dict[str, Any]) -> None:
    """Define a prompt's helpers."""
    tree = _parse_prompt(prompt)
    if tree is not None:
        exec(_compile_prompt(tree), space)


def _compile_prompt(tree: ast.Module) -> types.CodeType:
    return compile(tree, "<prompt>", "exec", dont_inherit=True)


def _parse_prompt(prompt: str) -> ast.Module | None:
    """The syntax tree of a prompt.

    Where it stops in the middle of a block, the block is closed; where it stops in the middle of a
    statement, the statement and, if need be, all of its function are left out.
    """
    lines = prompt.rstrip().splitlines()
    while lines:
        line = lines[-1]
        indent = line[: len(line) - len(line.lstrip())]
        endings = ["", f"\n{indent}    pass\n", f"\n{indent}\tpass\n", f"\n{indent}pass\n"]
        for closing in endings:
            text = "\n".join(lines) + closing
            for tail in ("", *_handlers(lines)):
                try:
                    return ast.parse(text + tail, "<prompt>")
                except (SyntaxError, ValueError):
                    continue
        # The statement that it ends in, up to the next one that stands further left.
        lines.pop()
        while lines and not lines[-1].strip():
            lines.pop()
    return None


def _handlers(lines: list[str]) -> list[str]:
    """What closes the ``try`` blocks that are open at the end, innermost first."""
    tails, tail = [], ""
    depth: int | None = None
    for line in reversed(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if not text or (depth is not None and indent >= depth):
            continue
        depth = indent
        if text.startswith("try:"):
            tail += f"\n{line[:indent]}finally:\n{line[:indent]}    pass\n"
            tails.append(tail)
    return tails
