"""The tester: the process that holds the tests and decides, and never runs the submission."""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .channel import BrokenBorder, Channel
from .peer import OPERATIONS, Peer

__all__ = ["run_tests"]

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, functools.partial, type)
_OF_FUNCTIONS = frozenset(("call",))
_OF_ITERATORS = frozenset(("next", "iter"))
_OF_OBJECTS = frozenset(OPERATIONS) - {"isinstance", "enter", "exit"}
_DETAIL = 1000
_LAST_WORDS = 0.2  # seconds given to a solver that hung up, to be seen dead


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
            code = compile(prompt + ending, "<prompt>", "exec")
        except (SyntaxError, ValueError):
            continue
        exec(code, space)
        return


def run_tests(connection: socket.socket, tests: int, solver: int) -> dict[str, Any]:
    """Judge the submission that process ``solver`` holds by the tests in a JSON file descriptor.

    Returns ``{"passed", "status", "detail"}`` as the protocol has them.
    """
    channel = Channel(connection)
    with os.fdopen(tests, "rb") as file:
        program = json.load(file)
    try:
        loaded = channel.receive()
        if "loaded" not in loaded:
            kind, text = (str(part) for part in loaded["failed"])
            return _verdict("memory" if kind == "MemoryError" else "failed", f"{kind}: {text}")
        if not program["shared"]:
            _check(Tester(channel), program)
    except BaseException as error:
        return _explain(error, program, solver)
    return _verdict("passed", "")


def _check(tester: Tester, program: dict[str, str]) -> None:
    """Run the tests; returns only where they passed and the border held until the end."""
    try:
        tests = compile(program["test"], "<tests>", "exec")
        check = compile(f"check({program['entry_point']})", "<check>", "exec")
    except (SyntaxError, ValueError) as error:
        raise _BadTests(f"the problem's tests do not compile: {error}") from error
    space = tester.namespace(program, tests, check)
    exec(tests, space)
    if "check" not in space:
        raise _BadTests("the problem's tests define no function check")
    exec(check, space)
    if tester.broken is not None:
        raise BrokenBorder(tester.broken)


class _BadTests(Exception):  # noqa: N818
    """The problem is at fault, not the submission."""


def _explain(error: BaseException, program: dict[str, str], solver: int) -> dict[str, Any]:
    if isinstance(error, _BadTests):
        return _verdict("error", str(error))
    if isinstance(error, MemoryError):
        return _verdict("memory", "MemoryError")
    if isinstance(error, BrokenBorder):
        ending = _ending(solver)
        if ending == signal.SIGXCPU:
            return _verdict("timeout", "the submission used up its processor time")
        how = f" by signal {ending}" if ending else ""
        return _verdict("failed", f"the submission broke off{how}: {error}")
    lines = program["test"].splitlines()
    numbers = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>"
    ]
    where = ""
    if numbers and numbers[-1] is not None and numbers[-1] <= len(lines):
        where = f" at line {numbers[-1]} of the tests: {lines[numbers[-1] - 1].strip()[:200]}"
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    return _verdict("failed", f"{type(error).__name__}: {text[:_DETAIL]}{where}")


def _ending(solver: int) -> int:
    """The signal that ended the solver, or 0."""
    deadline = time.monotonic() + _LAST_WORDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(solver, os.WNOHANG)
        if pid:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        time.sleep(0.005)
    return 0


def _verdict(status: str, detail: str) -> dict[str, Any]:
    return {"passed": status == "passed", "status": status, "detail": detail[: 2 * _DETAIL]}
