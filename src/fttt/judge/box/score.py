"""Counts a problem's tests and lets each run, though an earlier one failed.

A test is a statement directly inside ``check`` that can say "wrong": an ``assert`` or ``raise``
(also inside an ``if``, ``try``, ``with`` or ``while``), or a call of the candidate, or of a helper
that does one of these, whose result nobody keeps. A ``for`` loop of tests counts once per turn
where the number of turns is known before it starts (a ``range``, a literal or a built-in
container, through ``zip`` and ``enumerate`` too), else as one. What lies between tests prepares
them; where that fails, the tests that use its result have failed.

The verdict is that of the first exception, exactly as if nothing had been counted: only what runs
after it is new. A ``check`` of another shape (a generator, a coroutine, one that is decorated or
that the tests use elsewhere) is one test.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

__all__ = ["SCORE", "Failure", "Score", "instrument"]

SCORE = "__score__"
"""The name under which instrumented tests find their :class:`Score`."""

_SOURCE = 2000  # characters of a failed test that are reported
_FAILURES = 20
_PROGRESS = 8000  # a pipe holds 64 KiB, and the verdict comes behind
_PLAIN = (list, tuple, dict, set, frozenset, str, bytes, range)
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_STEPS = (
    ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Assert, ast.For, ast.While, ast.With,
    ast.Try, ast.TryStar, ast.If, ast.Match, ast.Raise, ast.Delete,
)  # fmt: skip
_COMPOUND = (ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.If, ast.Match)


@dataclass
class Failure:
    """A test that failed: which one, its line and text in the problem's tests, and the error."""

    index: int
    line: int
    source: str
    error: str


@dataclass
class Statement:
    """A statement of ``check``: a test, or what prepares tests."""

    line: int
    source: str
    uses: frozenset[str] = frozenset()
    binds: frozenset[str] = frozenset()
    index: int | None = None
    """Which test it is; nothing where it is none."""
    turns: int = 1
    by_turn: bool = False

    def fixed(self) -> tuple[Any, ...]:
        """What is known of it before it runs, to make it again."""
        return self.line, self.source, self.uses, self.binds, self.index


@dataclass
class Score:
    """The tests of one problem, and how they went."""

    steps: list[Statement] = field(default_factory=list)
    ending: tuple[type[BaseException], ...] = (MemoryError,)
    """What no later test can survive."""
    describe: Callable[[BaseException], str] = repr
    progress: int = -1
    """Where each test's end is written at once, so that it counts though the box be killed."""
    passed: int = 0
    failures: list[Failure] = field(default_factory=list)
    on_failure: Callable[[BaseException], None] = lambda error: None
    """Told of the first failure, which is the verdict."""
    failed: bool = False
    _lost: set[str] = field(default_factory=set)
    _written: int = 0

    @property
    def total(self) -> int:
        """The tests that there are, as far as that is known by now."""
        return max(1, sum(step.turns for step in self.steps if step.index is not None))

    def step(self, number: int) -> _Guard:
        """Guard a statement."""
        return _Guard(self, self.steps[number])

    def loop(self, number: int, length: Callable[[], int]) -> _Guard:
        """Guard a loop of tests as a whole; its turns are tests where their number is known."""
        step = self.steps[number]
        try:
            step.turns, step.by_turn = length(), True
        except Exception:
            step.turns, step.by_turn = 1, False
        self.write(f'\n{{"tests_total": {self.total}}}\n')
        return _Guard(self, step, whole=True)

    def turn(self, number: int) -> _Guard:
        """Guard one turn of a loop."""
        step = self.steps[number]
        return _Guard(self, step, transparent=not step.by_turn)

    @staticmethod
    def size(value: Any) -> int:
        """The length of a plain container; nothing that runs foreign code is asked."""
        if type(value) not in _PLAIN:
            raise TypeError(f"the length of a {type(value).__name__} is not known before")
        return len(value)

    @staticmethod
    def number(value: Any) -> int:
        """A plain integer."""
        if type(value) is not int:
            raise TypeError(f"a {type(value).__name__} is no number of turns")
        return value

    least = staticmethod(min)

    def succeeded(self, step: Statement) -> None:
        """Count a statement that ended well."""
        if step.uses & self._lost:
            self._count(step, "what it needs failed before")
            return
        self._lost -= step.binds
        if step.index is not None:
            self.passed += 1
            self.write("+")

    def fell(self, step: Statement, error: BaseException) -> None:
        """Count a statement that raised."""
        if not self.failed:
            self.failed = True
            self.on_failure(error)
        if step.index is None:
            self._lost |= step.binds
        self._count(step, self.describe(error))

    def end(self) -> tuple[int, int]:
        """``(passed, total)`` of a check that came to its end, or to its last exception."""
        if not self.failed:
            return self.total, self.total
        return min(self.passed, self.total - 1), self.total

    def write(self, text: str) -> None:
        """Report progress, where there is still room for it."""
        if self.progress >= 0 and self._written < _PROGRESS:
            self._written += len(text)
            os.write(self.progress, text.encode("ascii"))

    def _count(self, step: Statement, error: str) -> None:
        if step.index is None:
            return
        known = len(self.failures)
        if known < _FAILURES and (not known or self.failures[-1].index != step.index):
            self.failures.append(Failure(step.index, step.line, step.source, error))
        self.write("-")


class _Guard:
    """A statement under way; leaving it counts it, and lets the next one run."""

    __slots__ = ("_score", "_step", "_transparent", "_whole")

    def __init__(
        self, score: Score, step: Statement, *, whole: bool = False, transparent: bool = False
    ) -> None:
        self._score, self._step, self._whole, self._transparent = score, step, whole, transparent

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._transparent:
            return False
        if error is None:
            if not (self._whole and self._step.by_turn):
                self._score.succeeded(self._step)
            return False
        if isinstance(error, self._score.ending):
            return False
        self._score.fell(self._step, error)
        return True


def instrument(tree: ast.Module, source: str, entry: Iterable[str] = ()) -> Score:
    """Have the tests in ``tree`` counted; changes the tree, and says what was found.

    ``entry`` are names of the candidate, beside that of the argument of ``check``.
    The instrumented code needs the answer under the name :data:`SCORE` among its globals.
    """
    score = Score()
    check = _check(tree)
    if check is None:
        return score
    checkers = _checkers(tree, check, set(entry))
    tests = 0
    body: list[ast.stmt] = []
    for statement in check.body:
        if not isinstance(statement, _STEPS) or _is_text(statement):
            body.append(statement)
            continue
        number = len(score.steps)
        text = ast.get_source_segment(source, statement) or ""
        uses, binds = _used(statement), _bound(statement)
        if isinstance(statement, ast.AugAssign):
            uses |= binds
        step = Statement(statement.lineno, text[:_SOURCE], uses, binds)
        score.steps.append(step)
        if _is_test(statement, checkers):
            step.index = tests
            tests += 1
        body.append(_guarded(statement, number, step.index is not None))
    if tests:
        check.body = body
        ast.fix_missing_locations(tree)
    else:
        score.steps.clear()
    return score


def _check(tree: ast.Module) -> ast.FunctionDef | None:
    """The function ``check``, where its statements can be told apart without changing it."""
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "check"]
    if len(found) != 1 or uses or found[0].decorator_list:
        return None
    own = list(_own(found[0].body))
    if any(isinstance(node, ast.Yield | ast.YieldFrom | ast.Await) for node in own):
        return None
    names = {node.id for node in own if isinstance(node, ast.Name)}
    # These look at the frame or at its variables.
    return None if names & {"locals", "vars", "dir", "eval", "exec", SCORE} else found[0]


def _own(nodes: list[ast.stmt]) -> Any:
    """All nodes below some statements, without the bodies of functions and classes in them."""
    todo: list[ast.AST] = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _Function | ast.ClassDef):
            todo.extend(ast.iter_child_nodes(node))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _checkers(tree: ast.Module, check: ast.FunctionDef, names: set[str]) -> set[str]:
    """The candidate's names within ``check``, and the helpers that call it or can say "wrong"."""
    arguments = check.args.posonlyargs + check.args.args
    names |= {argument.arg for argument in arguments[:1]}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not check]
    aliases = [n for n in check.body if isinstance(n, ast.Assign)]
    while True:
        more = {
            target.id
            for node in aliases
            for target in node.targets
            if isinstance(target, ast.Name)
            and isinstance(node.value, ast.Name | ast.Lambda)
            and _used(node.value) & names
        }
        for function in functions:
            below = list(ast.walk(function))
            says = any(isinstance(node, ast.Assert | ast.Raise) for node in below)
            if says or _used(function) & names:
                more.add(function.name)
        if more <= names:
            return names
        names |= more


def _is_test(statement: ast.stmt, checkers: set[str]) -> bool:
    if isinstance(statement, ast.Assert | ast.Raise):
        return True
    if isinstance(statement, ast.Expr):
        return bool(_used(statement) & checkers)
    if not isinstance(statement, _COMPOUND):
        return False
    below = list(ast.walk(statement))
    return any(isinstance(node, ast.Assert | ast.Raise) for node in below) or any(
        isinstance(node, ast.Expr) and _used(node) & checkers for node in below
    )


def _used(node: ast.AST) -> frozenset[str]:
    below = ast.walk(node)
    return frozenset(
        n.id for n in below if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)
    )


def _bound(node: ast.AST) -> frozenset[str]:
    below = ast.walk(node)
    return frozenset(
        n.id for n in below if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )


def _guarded(statement: ast.stmt, number: int, is_test: bool) -> ast.stmt:
    if not isinstance(statement, ast.For) or not is_test:
        return _with("step", number, [], [statement], statement)
    length = _length(statement.iter) or _method("size", [ast.Constant(None)])
    known = ast.Lambda(ast.arguments([], [], None, [], [], None, []), length)
    statement.body = [_with("turn", number, [], statement.body, statement.body[0])]
    return _with("loop", number, [known], [statement], statement)


def _with(
    method: str, number: int, more: list[ast.expr], body: list[ast.stmt], place: ast.AST
) -> ast.With:
    guard = _method(method, [ast.Constant(number), *more])
    node = ast.With([ast.withitem(guard)], body)
    return ast.fix_missing_locations(ast.copy_location(node, place))


def _method(name: str, arguments: list[ast.expr]) -> ast.Call:
    function = ast.Attribute(ast.Name(SCORE, ast.Load()), name, ast.Load())
    return ast.Call(function, arguments, [])


def _length(node: ast.expr) -> ast.expr | None:
    """An expression for the number of turns over ``node``, or nothing."""
    if isinstance(node, ast.Name):
        return _method("size", [node])
    if isinstance(node, ast.List | ast.Tuple):
        if any(isinstance(item, ast.Starred) for item in node.elts):
            return None
        return ast.Constant(len(node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return ast.Constant(len(node.keys))
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return ast.Constant(len(node.value))
    if not isinstance(node, ast.Call) or node.keywords:
        return None
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "keys", "values"):
        return _length(node.func.value) if not node.args else None
    if not isinstance(node.func, ast.Name):
        return None
    if node.func.id == "range":
        numbers = [_number(argument) for argument in node.args]
        known = [number for number in numbers if number is not None]
        turns = ast.Call(ast.Name("range", ast.Load()), known, [])
        return _method("size", [turns]) if len(known) == len(numbers) else None
    if node.func.id in ("enumerate", "reversed", "list", "tuple", "sorted") and node.args:
        return _length(node.args[0])
    lengths = [_length(argument) for argument in node.args]
    known = [length for length in lengths if length is not None]
    if node.func.id != "zip" or not lengths or len(known) != len(lengths):
        return None
    return _method("least", [ast.List(known, ast.Load())])


def _number(node: ast.expr) -> ast.expr | None:
    """An expression for a number that runs no foreign code, or nothing."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node
    if isinstance(node, ast.Name):
        return _method("number", [node])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _number(node.operand)
        return operand and ast.UnaryOp(node.op, operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
        left, right = _number(node.left), _number(node.right)
        return left and right and ast.BinOp(left, node.op, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return _length(node.args[0]) if len(node.args) == 1 and not node.keywords else None
    return None
