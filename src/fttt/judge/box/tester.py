"""The tester: the process that holds the tests and decides, and never runs the submission."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .channel import BrokenBorder, Channel
from .peer import OPERATIONS, Peer
from .score import SCORE, Score, instrument

__all__ = ["run_tests"]

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, functools.partial, type)
_OF_FUNCTIONS = frozenset(("call",))
_OF_ITERATORS = frozenset(("next", "iter"))
_OF_OBJECTS = frozenset(OPERATIONS) - {"isinstance", "enter", "exit"}
_DETAIL = 1000
_VERDICT = 40_000  # bytes; the marks of progress have room beside it in a pipe
_LAST_WORDS = 2.0  # seconds given to a solver that hung up, to be seen dead


class Tester(Peer):
    """The tests' side of the border: what the submission may do with what it is handed.

    Functions may be called, iterators advanced; of instances of classes that the tests define,
    names without an underscore in front may be used. There is no way from these to the tests.
    """

    def kind(self, value: Any) -> str:
        if hasattr(type(value), "__next__"):
            return "iterator"
        if isinstance(value, _FUNCTIONS):
            return "function"
        if type(value).__module__ == "tests":
            return "object"
        raise TypeError(
            f"a {type(value).__name__} may not cross to the submission; "
            'tests that need it can say "border": "shared" in their problem object'
        )

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        kind = self.kind(target)
        allowed = {"function": _OF_FUNCTIONS, "iterator": _OF_ITERATORS}.get(kind, _OF_OBJECTS)
        private = operation.endswith("attr") and (type(args[0]) is not str or args[0][:1] == "_")
        if operation not in allowed or private:
            raise TypeError(f"{operation} is not allowed on this {kind}")
        return OPERATIONS[operation](target, *args, **kwargs)

    def namespace(self, program: dict[str, str], *codes: CodeType) -> dict[str, Any]:
        """The tests' globals: the prompt's helpers as the prompt wrote them, then the candidate.

        Only what the tests name and nobody else defines is taken from the submission, and the
        entry point always: a submission cannot put its own ``all`` or helper in the tests' way.
        """
        module = ModuleType("tests")
        sys.modules["tests"] = module
        space = module.__dict__
        _run_prompt(program["prompt"], space)
        entry = set(codes[-1].co_names) - {"check"}
        for name in entry:
            space.pop(name, None)
        wanted = {name for code in codes for name in _names(code)} - set(space) - {"check"}
        wanted = {name for name in wanted if name in entry or not hasattr(builtins, name)}
        found = self.ask("names", None, tuple(sorted(wanted)), {})
        for name, (what, value) in found.items():
            if name in wanted:
                space[name] = self._bind(name, what, value)
        return space

    def _bind(self, name: str, what: str, value: Any) -> Any:
        if what == "value":
            return value
        if what == "exception":
            return self.exception_type(name, value)
        if value not in sys.stdlib_module_names or (what == "module" and value != name):
            raise NameError(f"the tests use {name}, which is no module of the standard library")
        module = importlib.import_module(value)
        return module if what == "module" else getattr(module, name)


def _names(code: CodeType) -> set[str]:
    """The global names that some code may use, functions within it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _run_prompt(prompt: str, space: dict[str, Any]) -> None:
    """Define the prompt's helpers; a prompt that stops in mid-function is closed with ``pass``."""
    for ending in ("", "\n    pass\n"):
        try:
            code = compile(prompt + ending, "<prompt>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        exec(code, space)
        return


def run_tests(connection: socket.socket, tests: int, solver: int, answer: int) -> None:
    """Judge the submission that process ``solver`` holds by the tests in a JSON file descriptor.

    Writes to ``answer`` how each test ends (``+`` or ``-``) when it does, and in lines of their own
    how many there are, the verdict as soon as it is no pass, and the verdict at the end:
    ``{"status", "detail", "tests_passed", "tests_total", "failures"}``. The last such line counts,
    with the marks behind it.
    """
    with os.fdopen(tests, "rb") as file:
        program = json.load(file)
    score = Score()
    verdict: dict[str, Any] = {"status": "passed", "detail": ""}
    try:
        tree = _parse(program)
        if not program["shared"]:
            score = instrument(tree, program["test"])
        score.ending = (MemoryError, BrokenBorder)
        score.progress = answer
        score.describe = _describe

        def first_failure(error: BaseException) -> None:
            verdict.update(_explain(error, program, solver))
            os.write(answer, f"\n{json.dumps(verdict)}\n".encode("ascii"))

        score.on_failure = first_failure
        score.write(f'{{"tests_total": {score.total}}}\n')
        channel = Channel(connection)
        loaded = channel.receive()
        if "loaded" not in loaded:
            kind, text = (str(part) for part in loaded["failed"])
            raise _NotLoaded(kind, text)
        if not program["shared"]:
            _check(Tester(channel), program, tree, score)
    except BaseException as error:
        if not score.failed:
            score.failed = True
            verdict = _explain(error, program, solver)
    passed, total = score.end()
    failures = [asdict(failure) for failure in score.failures]
    result = {**verdict, "tests_passed": passed, "tests_total": total, "failures": failures}
    while len(text := json.dumps(result)) > _VERDICT:
        failures.pop()
    os.write(answer, f"\n{text}\n".encode("ascii"))


def _parse(program: dict[str, str]) -> ast.Module:
    try:
        return ast.parse(program["test"], "<tests>")
    except (SyntaxError, ValueError) as error:
        raise _BadTests(f"the problem's tests do not compile: {error}") from error


def _check(tester: Tester, program: dict[str, str], tree: ast.Module, score: Score) -> None:
    """Run the tests; where they passed, the border held until the end."""
    try:
        tests = compile(tree, "<tests>", "exec", dont_inherit=True)
        call = f"check({program['entry_point']})"
        check = compile(call, "<check>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise _BadTests(f"the problem's tests do not compile: {error}") from error
    space = tester.namespace(program, tests, check)
    space[SCORE] = score
    exec(tests, space)
    if "check" not in space:
        raise _BadTests("the problem's tests define no function check")
    exec(check, space)
    if tester.broken is not None:
        raise BrokenBorder(tester.broken)


class _BadTests(Exception):  # noqa: N818
    """The problem is at fault, not the submission."""


class _NotLoaded(Exception):  # noqa: N818
    """The submission did not even load: its exception's type and text."""


def _explain(error: BaseException, program: dict[str, str], solver: int) -> dict[str, Any]:
    """The verdict that an exception out of the tests means.

    ``"signal"`` is in it where one ended the submission: it may have come from outside.
    """
    if isinstance(error, _BadTests):
        return _verdict("error", str(error))
    if isinstance(error, _NotLoaded):
        kind, text = error.args
        return _verdict("memory" if kind == "MemoryError" else "failed", f"{kind}: {text}")
    if isinstance(error, MemoryError):
        return _verdict("memory", "MemoryError")
    if isinstance(error, BrokenBorder):
        ending = _ending(solver)
        if ending == signal.SIGXCPU:
            return _verdict("timeout", "the submission used up its processor time")
        how = f" by signal {ending}" if ending else ""
        broken = _verdict("failed", f"the submission broke off{how}: {error}")
        return {**broken, "signal": ending}
    lines = program["test"].splitlines()
    numbers = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>"
    ]
    where = ""
    if numbers and numbers[-1] is not None and numbers[-1] <= len(lines):
        where = f" at line {numbers[-1]} of the tests: {lines[numbers[-1] - 1].strip()[:200]}"
    return _verdict("failed", f"{_describe(error)}{where}")


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    return f"{type(error).__name__}: {text[:_DETAIL]}"


def _ending(solver: int) -> int:
    """The signal that ended the solver, or 0."""
    end = select.poll()
    end.register(os.pidfd_open(solver), select.POLLIN)
    if not end.poll(_LAST_WORDS * 1000):
        return 0
    _, status = os.waitpid(solver, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _verdict(status: str, detail: str) -> dict[str, str]:
    return {"status": status, "detail": detail[: 2 * _DETAIL]}
