"""A problem's tests, analysed, instrumented and compiled once for all submissions to it.

The first box that a problem gets prepares its tests before its submission is run, and leaves them
to the service; later boxes load them. Nothing of a submission is in what they load.

Of the analysis: names are *tainted* that may hold something of the submission's, the candidate and
whatever is computed with it. The rest follows from how such names, and names that nobody defines,
are used.
"""

from __future__ import annotations

import ast
import builtins
import json
import marshal
import os
import struct
import symtable
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from .score import Statement, instrument

__all__ = ["Analysis", "BadTests", "Tests", "analyse", "is_prepared", "run_prompt"]

_THREADS = {"threading", "concurrent", "multiprocessing", "asyncio", "_thread", "queue", "sched"}
_APART = {"weakref", "pickle", "tracemalloc"}
_APART_CALLS = {"patch", "catch_warnings", "warns", "assertWarns", "assertLogs", "getrefcount"}
_STREAMS = {"stdout", "stderr", "stdin"}
_RAISES = {"raises", "assertRaises", "assertRaisesRegex", "suppress"}
_CHECKS = {"isinstance", "issubclass"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_SUITES = ("body", "orelse", "finalbody", "handlers", "cases")

_EXPORTERS = (
    "typing", "collections", "itertools", "functools", "math", "datetime", "decimal", "fractions",
    "copy", "re", "string", "heapq", "bisect", "operator", "random", "statistics", "dataclasses",
    "enum", "abc", "io",
)  # fmt: skip
"""Where a name that nobody defines may have been meant to be imported from."""


@dataclass
class Analysis:
    """What tests are like."""

    entry: set[str] = field(default_factory=set)
    """The names that the call of ``check`` uses: the candidate's."""
    shows_operands: bool = False
    """Whether a class is asked for, whose operators are part of what is tested."""
    threads: bool = False
    together: str | None = None
    """Why tests and submission have to share one process, where they have to."""
    standard: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Names of the standard library that the tests forgot to import: module and name in it."""
    anything: set[str] = field(default_factory=set)
    """Undefined names that only make arguments of the candidate."""
    classes: set[str] = field(default_factory=set)
    """Undefined names that may be classes of the submission."""
    exceptions: set[str] = field(default_factory=set)
    """Undefined names that say which exception is expected, or of which class something is."""
    undefined: set[str] = field(default_factory=set)
    """Names that have no meaning: the submission does not give them one."""
    tainted: set[str] = field(default_factory=set)
    source: str = ""

    def deliberate(self, trace: TracebackType | None) -> bool:
        """Whether an exception that left a ``with`` block came from nothing of the submission's.

        ``trace`` begins in the function that has the block.
        """
        if trace is None:
            return True
        code = trace.tb_frame.f_code
        if code.co_filename != "<tests>":
            return False
        line, _, column, _ = list(code.co_positions())[trace.tb_lasti // 2]
        if line is None or column is None:
            return False
        path = _path(ast.parse(self.source, "<tests>").body, line, column)
        blocks = [n for n, node in enumerate(path) if isinstance(node, ast.With | ast.AsyncWith)]
        if not blocks:
            return False
        parts = [p for s in path[blocks[0] + 1 :] for p in _decides(s, leaf=s is path[-1])]
        return not any(self.tainted & set(_names(part)) for part in parts)


def analyse(tree: ast.Module, source: str, call: ast.expr, defined: set[str]) -> Analysis:
    """Analyse tests that are called by the expression ``call``.

    ``tree`` is that of ``source``, ``defined`` what the prompt names.

    Raises :class:`SyntaxError` where the tests are none.
    """
    analysis = Analysis(entry=set(_names(call)) - {"check"}, source=source)
    unknown = _undefined(source) - defined - {"check"} - analysis.entry
    check = next((n for n in tree.body if isinstance(n, _Function) and n.name == "check"), None)
    arguments = call.args if isinstance(call, ast.Call) else []
    if not arguments:
        # The published judge's tests call the function by its name.
        analysis.entry |= _called(check, unknown) if check is not None else set()
        unknown -= analysis.entry
    elif isinstance(arguments[0], ast.Name | ast.Attribute):
        name = arguments[0].id if isinstance(arguments[0], ast.Name) else arguments[0].attr
        analysis.shows_operands = name.lstrip("_")[:1].isupper()
    own = {a.arg for a in check.args.args[:1]} if check is not None and arguments else set()
    analysis.tainted = _taint(tree, analysis.entry | own)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | set(_imported(tree))
    calls = {_last(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    analysis.threads = bool(used & _THREADS) or "sleep" in calls
    for name in unknown:
        _settle(analysis, tree, name)
    analysis.together = _together(tree, analysis.tainted | analysis.classes, used, calls)
    return analysis


def _names(node: ast.AST) -> Iterator[str]:
    for below in ast.walk(node):
        if isinstance(below, ast.Name):
            yield below.id


def _last(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _undefined(source: str) -> set[str]:
    """The global names that tests use and neither they nor Python define."""
    top = symtable.symtable(source, "<tests>", "exec")
    used, defined = set[str](), set[str]()
    todo = [top]
    while todo:
        table = todo.pop()
        todo.extend(table.get_children())
        for symbol in table.get_symbols():
            outer = table is top or symbol.is_global()
            if outer and symbol.is_referenced():
                used.add(symbol.get_name())
            if outer and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                defined.add(symbol.get_name())
    return used - defined - set(dir(builtins)) - {"__name__", "__file__"}


def _called(check: ast.AST, unknown: set[str]) -> set[str]:
    """The function that tests without a candidate are about: the one that most of them call."""
    counts: dict[str, int] = {}
    for node in ast.walk(check):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in unknown and name not in sys.stdlib_module_names:
                counts[name] = counts.get(name, 0) + 1
    functions = {name: count for name, count in counts.items() if not name[:1].isupper()}
    best = functions or counts
    return {max(best, key=lambda name: best[name])} if best else set()


def _taint(tree: ast.Module, names: set[str]) -> set[str]:
    """All names that may hold what was computed with some names."""
    names = set(names)
    while True:
        found: set[str] = set()
        for node in ast.walk(tree):
            for targets, values in _flows(node):
                if any(names & set(_names(value)) for value in values):
                    found |= {name for target in targets for name in _names(target)}
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = [*node.body, *node.decorator_list]
                if node.name != "check" and any(names & set(_names(part)) for part in inside):
                    found.add(node.name)
        if found <= names:
            return names
        names |= found


def _flows(node: ast.AST) -> Iterator[tuple[list[ast.expr], list[ast.expr]]]:
    """The targets and values of an assignment of any kind."""
    if isinstance(node, ast.Assign):
        yield node.targets, [node.value]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        yield [node.target], [node.value] if node.value is not None else []
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        yield [node.target], [node.iter]
    elif isinstance(node, ast.With | ast.AsyncWith):
        for item in node.items:
            if item.optional_vars is not None:
                yield [item.optional_vars], [item.context_expr]


def _settle(analysis: Analysis, tree: ast.Module, name: str) -> None:
    """Decide what a name means that nobody defines."""
    if name in sys.stdlib_module_names:
        analysis.standard[name] = (name, None)
        return
    for module in _EXPORTERS:
        if module in sys.modules and name in vars(sys.modules[module]):
            analysis.standard[name] = (module, name)
            return
    uses = set(_uses(tree, name, analysis.tainted, "plain"))
    if "wrong" in uses:
        analysis.undefined.add(name)
    elif uses <= {"argument"}:
        analysis.anything.add(name)
    elif uses <= {"argument", "class"}:
        analysis.exceptions.add(name)
    else:
        analysis.classes.add(name)


def _uses(node: ast.AST, name: str, tainted: set[str], where: str) -> Iterator[str]:
    """How a name is used: as an ``argument``, for its ``class``, to ``make`` things, or ``wrong``.

    What it makes may become an argument of the candidate, but neither decide a test nor be handed
    what the candidate answered.
    """
    if isinstance(node, ast.Name):
        if node.id == name:
            yield "make" if where == "plain" else where
        return
    if isinstance(node, ast.Assert):
        where = "wrong"
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield from _uses(node.type, name, tainted, "class")
        for statement in node.body:
            yield from _uses(statement, name, tainted, where)
        return
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield from _uses(node.test, name, tainted, "wrong")
        for below in ast.iter_child_nodes(node):
            if below is not node.test:
                yield from _uses(below, name, tainted, where)
        return
    elif isinstance(node, ast.Call):
        function = _last(node.func)
        inside = where
        if tainted & set(_names(node.func)):
            inside = "argument"
        elif function in _CHECKS | _RAISES:
            inside = "class"
        elif name in set(_names(node.func)) and any(tainted & set(_names(a)) for a in node.args):
            yield "wrong"
        yield from _uses(node.func, name, tainted, where)
        for place, argument in enumerate([*node.args, *(k.value for k in node.keywords)]):
            first = function in _CHECKS and place == 0
            yield from _uses(argument, name, tainted, where if first else inside)
        return
    for below in ast.iter_child_nodes(node):
        yield from _uses(below, name, tainted, where)


def _together(tree: ast.Module, tainted: set[str], used: set[str], calls: set[str]) -> str | None:
    """Why tests cannot be run apart from the submission, or nothing."""
    modules = set(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            outside = [*node.bases, *(k.value for k in node.keywords), *node.decorator_list]
            values = [n.value for n in node.body if isinstance(n, ast.Assign | ast.AnnAssign)]
            for part in (*outside, *values):
                if part is not None and tainted & set(_names(part)):
                    return f"the tests' class {node.name} is made with the submission's"
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
                continue
            if target.value.id in modules and target.attr not in _STREAMS:
                return f"the tests replace {target.value.id}.{target.attr}"
    found = sorted((used & _APART) | (calls & _APART_CALLS))
    return f"the tests use {found[0]}" if found else None


def _path(body: Sequence[ast.AST], line: int, column: int) -> list[ast.stmt]:
    """The statements around a place of the text, outermost first, within its own function."""
    for node in body:
        inside = [part for name in _SUITES for part in getattr(node, name, [])]
        if not isinstance(node, ast.stmt):  # a handler or a case
            if found := _path(inside, line, column):
                return found
        elif (node.lineno, node.col_offset) <= (line, column) < _end(node):
            deeper = _path(inside, line, column)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                return deeper
            return [node, *deeper]
    return []


def _end(node: ast.stmt) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _decides(statement: ast.stmt, leaf: bool) -> list[ast.AST]:
    """The parts of a statement that decide whether what lies in it is run."""
    if leaf:
        return [statement]
    names = ("test", "iter", "target", "subject")
    return [getattr(statement, name) for name in names if hasattr(statement, name)]


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
