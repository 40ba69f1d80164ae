"""The tester: the process that holds the tests and decides, and never runs the submission."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import types
from collections.abc import Collection
from dataclasses import asdict
from typing import Any, ClassVar

from .channel import BrokenBorder, Channel, NotLoaded
from .peer import Peer, Refused
from .remote import OPERATIONS, RemoteType, is_remote
from .score import SCORE, Score, instrument
from .tests import Analysis, BadTests, Tests, run_prompt

__all__ = ["line_of", "run_here", "run_tests"]

_PRIVATE_TYPES = (types.FrameType, types.TracebackType, types.CodeType)
_FUNCTIONS = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial,
    type(str.lower),
)  # fmt: skip
_TEXTS = frozenset(
    f"__{name}__"
    for name in (
        "name", "qualname", "doc", "module", "annotations", "defaults", "kwdefaults", "match_args",
        "members", "notes", "cause", "wrapped", "type_params",
    )
)  # fmt: skip
"""What any value of the tests may be asked for beside its public attributes."""

_OF_ITERATORS = frozenset(("next", "length_hint"))
_OF_GENERATORS = _OF_ITERATORS | {"send", "throw", "close"}
_DETAIL = 1000
_VERDICT = 40_000  # bytes; the marks of progress have room beside it in a pipe
_LAST_WORDS = 2.0  # seconds given to a solver that hung up, to be seen dead


class Tester(Peer):
    """The tests' side of the border: what the submission may do with what it is handed.

    Functions may be called, iterators advanced, coroutines awaited; of other objects, names
    without an underscore in front may be used. There is no way from these to the tests.
    """

    parity: ClassVar[int] = 0
    trusting: ClassVar[bool] = False
    shows_operands = False

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._shared: dict[str, type] = {}
        self._names: dict[type, str] = {}
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr", "stdin")}
        self._seed: tuple[Any, ...] | None = None
        self.analysis = Analysis()

    def shared_class(self, kind: type) -> str | None:
        return self._names.get(kind)

    def known_class(self, name: str) -> type:
        return self._shared[name]

    def may_cross(self, value: Any, kind: type) -> None:
        own = str(getattr(kind, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]
        if own or issubclass(kind, _PRIVATE_TYPES):
            raise TypeError(f"a {kind.__name__} may not cross to the submission")

    def may_swallow(self, error: BaseException | None, trace: Any) -> bool:
        return self.analysis.deliberate(trace)

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if not self._allows(operation, target, args):
            raise TypeError(f"{operation} is not allowed on this {type(target).__name__}")
        if operation == "dir":
            return [name for name in dir(target) if name[:1] != "_"]
        if operation == "getattr" and args[0] == "__dict__":
            return {name: value for name, value in vars(target).items() if name[:1] != "_"}
        return OPERATIONS[operation](target, *args, **kwargs)

    def _allows(self, operation: str, target: Any, args: list[Any]) -> bool:
        if operation not in OPERATIONS:
            return False
        if isinstance(target, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
            return operation in _OF_GENERATORS
        if operation in ("getattr", "setattr", "delattr"):
            name = args[0]
            if type(name) is not str:
                return False
            if name in _TEXTS or name == "__dict__":
                return operation == "getattr"
            if operation != "getattr" and isinstance(target, type):
                return False
            if isinstance(target, _FUNCTIONS):
                public = getattr(target, "__dict__", {})
                return name[:1] != "_" and (operation != "getattr" or name in public)
            return name[:1] != "_"
        if isinstance(target, _FUNCTIONS):
            return operation in ("call", "signature", "code", "special", "copy", "deepcopy")
        return True

    def begin(self, tests: Tests) -> dict[str, Any]:
        """The tests' globals: the prompt's helpers as the prompt wrote them, then the candidate.

        What the tests name and nobody defines has the standard library's meaning or none; the
        submission gives it one only where that cannot decide a test.
        """
        analysis = self.analysis = tests.analysis
        self.shows_operands = analysis.shows_operands
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        space = module.__dict__
        if tests.helpers is not None:
            exec(tests.helpers, space)
        for name in analysis.entry:
            space.pop(name, None)
        shared: dict[str, list[str] | None] = {}
        for name, value in space.items():
            if isinstance(value, type) and value.__module__ == "tests":
                # The submission may continue the class that the prompt ends in.
                shared[name] = sorted(vars(value)) if name == tests.last else None
        for name, (home, attribute) in analysis.standard.items():
            found = importlib.import_module(home)
            space[name] = found if attribute is None else getattr(found, attribute)
        wanted = analysis.anything | analysis.classes | analysis.exceptions
        arguments = (sorted(analysis.entry | wanted), shared, analysis.threads)
        found = self.ask("begin", None, arguments, {})
        if analysis.threads:
            self.read_on()
        for name in found["classes"]:
            self._shared[name] = space[name]
            self._names[space[name]] = name
        for name, value in found["values"].items():
            space[name] = self._bind(name, value)
        self._watch_seed()
        return space

    def _bind(self, name: str, value: Any) -> Any:
        """What a name of the submission's means in the tests."""
        if name in self.analysis.entry or name in self.analysis.anything:
            return value
        exception = isinstance(value, type) and issubclass(value, BaseException)
        if exception and issubclass(AssertionError, value):
            # It would catch what the tests themselves raise.
            return type(name, (Exception,), {})
        if exception or isinstance(value, RemoteType) or value in _CONTAINERS:
            return value
        return type(name, (), {})

    def _watch_seed(self) -> None:
        """Let the submission's random numbers follow a seed that the tests set."""
        seed = random.seed

        def follow(*args: Any, **kwargs: Any) -> None:
            seed(*args, **kwargs)
            self._seed = (*args, *kwargs.values())

        random.seed = follow

    def surroundings(self, writer: Any) -> dict[str, Any]:
        """What of this process's surroundings the tests have replaced, since the last call."""
        found: dict[str, Any] = {}
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is not self._streams[name]:
                found[name] = True
        if sys.stdin is not self._streams["stdin"]:
            found["stdin"] = writer.write(sys.stdin)
        if self._seed is not None:
            found["seed"], self._seed = writer.write(self._seed), None
        return found

    def printed(self, texts: dict[str, Any]) -> None:
        """Write what the submission printed where the tests look for it."""
        for name, text in texts.items():
            if name in ("stdout", "stderr"):
                getattr(sys, name).write(str(text))

    def unsendable(self, error: Exception) -> BaseException:
        self.refused = f"the border cannot carry an argument of the tests: {error}"[:_DETAIL]
        return Refused(self.refused)


_CONTAINERS = (list, dict, set, tuple, frozenset, str, int, float)


def run_tests(connection: socket.socket, tests: int, solver: int, answer: int) -> None:
    """Judge the submission that process ``solver`` holds by the tests in a file descriptor.

    Writes to ``answer`` how each test ends (``+`` or ``-``) when it does, and in lines of their own
    how many there are, the verdict as soon as it is no pass, and the verdict at the end:
    ``{"status", "detail", "tests_passed", "tests_total", "failures"}``. The last such line counts,
    with the marks behind it.
    """
    trial = _Trial(solver, answer)
    trial.run(Channel(connection), tests)
    os.write(answer, f"\n{json.dumps(trial.result())}\n".encode("ascii"))


class _Trial:
    """One submission's run through the tests."""

    def __init__(self, solver: int, answer: int) -> None:
        self._solver, self._answer = solver, answer
        self._tests: Tests | None = None
        self._score = Score()
        self._verdict: dict[str, Any] = {"status": "passed", "detail": ""}
        self._failures: list[dict[str, Any]] = []

    def run(self, channel: Channel, file: int) -> None:
        """Run all tests; the verdict is that of the first failure."""
        score = self._score
        try:
            tests = self._tests = Tests.read(file)
            os.close(file)
            score.steps = tests.steps
            score.ending = (MemoryError, BrokenBorder, Refused)
            score.progress = self._answer
            score.describe = _describe
            score.on_failure = self._first_failure
            score.write(f'{{"tests_total": {score.total}}}\n')
            tester = Tester(channel)
            if tests.shared:
                self._run_there(tester, tests)
            else:
                _check(tester, tests, score)
        except BaseException as error:
            if not score.failed:
                score.failed = True
                self._verdict = self._explain(error)

    def result(self) -> dict[str, Any]:
        """The answer, small enough for a pipe."""
        passed, total = self._score.end()
        failures = self._failures + [asdict(failure) for failure in self._score.failures]
        counts = {"tests_passed": passed, "tests_total": total, "failures": failures}
        result = {**self._verdict, **counts}
        while failures and len(json.dumps(result)) > _VERDICT:
            failures.pop()
        return result

    def _first_failure(self, error: BaseException) -> None:
        self._verdict = self._explain(error)
        os.write(self._answer, f"\n{json.dumps(self._verdict)}\n".encode("ascii"))

    def _run_there(self, tester: Tester, tests: Tests) -> None:
        """Have the tests run beside the submission, for a problem that can be tested only so.

        The answer has to know a secret that was told after the submission had been loaded. That
        does not keep a hostile one from forging it, but from forging it blindly.
        """
        secret = os.urandom(16).hex()
        names = sorted(tests.analysis.undefined)
        asked = (tests.prompt, tests.source, tests.call, names, secret)
        tester.ask("begin", None, ([], {}, True), {})
        answer = tester.ask("run", None, asked, {})
        if type(answer) is not dict or answer.pop("secret", None) != secret:
            raise BrokenBorder("an answer that is none to the tests")
        verdict = {name: str(answer.get(name, "")) for name in ("status", "detail")}
        passed, total = answer["tests_passed"], answer["tests_total"]
        score = self._score
        if verdict["status"] != "passed":
            score.failed, score.passed, self._verdict = True, min(passed, total), verdict
            self._failures = list(answer["failures"])

    def _explain(self, error: BaseException) -> dict[str, Any]:
        """The verdict that an exception out of the tests means.

        ``"signal"`` is in it where one ended the submission: it may have come from outside.
        """
        if isinstance(error, BadTests | Refused):
            return _verdict("error", str(error))
        if isinstance(error, NotLoaded):
            kind, text = error.args
            return _verdict("memory" if kind == "MemoryError" else "failed", f"{kind}: {text}")
        if isinstance(error, MemoryError):
            return _verdict("memory", "MemoryError")
        if isinstance(error, BrokenBorder):
            ending = _ending(self._solver)
            if ending == signal.SIGXCPU:
                return _verdict("timeout", "the submission used up its processor time")
            how = f" by signal {ending}" if ending else ""
            broken = _verdict("failed", f"the submission broke off{how}: {error}")
            return {**broken, "signal": ending}
        tests = self._tests
        return explain(error, tests.source, tests.analysis.undefined) if tests else explain(error)


def _check(tester: Tester, tests: Tests, score: Score) -> None:
    """Run the tests; where they passed, the border held until the end."""
    space = tester.begin(tests)
    space[SCORE] = score
    exec(tests.code, space)
    if "check" not in space:
        raise BadTests("the problem's tests define no function check")
    eval(tests.check, space)
    if tester.refused is not None:
        raise Refused(tester.refused)
    if tester.broken is not None:
        raise BrokenBorder(tester.broken)


def run_here(
    prompt: str, test: str, call: str, undefined: list[str], namespace: dict[str, Any]
) -> dict[str, Any]:
    """Run tests in the process of the submission, whose globals are ``namespace``."""
    own: dict[str, Any] = {}
    run_prompt(prompt, own)
    # Classes have to be the submission's own; functions need not be.
    helpers = {name: value for name, value in own.items() if isinstance(value, types.FunctionType)}
    space = {**namespace, **helpers}
    entry = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
    space.update({name: namespace[name] for name in entry if name in namespace})
    for name in undefined:
        space.pop(name, None)
    space["__builtins__"] = dict(_BUILTINS)
    tree = ast.parse(test, "<tests>")
    score = instrument(tree, test, entry)
    verdict = {"status": "passed", "detail": ""}
    score.describe = _describe
    score.on_failure = lambda error: verdict.update(explain(error, test, set(undefined)))
    space[SCORE] = score
    try:
        exec(compile(tree, "<tests>", "exec", dont_inherit=True), space)
        exec(compile(call, "<check>", "exec", dont_inherit=True), space)
    except BaseException as error:
        if not score.failed:
            score.failed = True
            score.on_failure(error)
    passed, total = score.end()
    failures = [asdict(failure) for failure in score.failures]
    return {**verdict, "tests_passed": passed, "tests_total": total, "failures": failures}


_BUILTINS = dict(vars(builtins))


def explain(
    error: BaseException, test: str = "", undefined: Collection[str] = ()
) -> dict[str, str]:
    """The verdict that an exception out of running tests means."""
    if isinstance(error, NameError) and error.name in undefined and not is_remote(error):
        return _verdict("error", f"the tests use the name {error.name}, which nobody defines")
    if isinstance(error, MemoryError):
        return _verdict("memory", "MemoryError")
    lines = test.splitlines()
    number = line_of(error, "<tests>")
    where = ""
    if 0 < number <= len(lines):
        where = f" at line {number} of the tests: {lines[number - 1].strip()[:200]}"
    return _verdict("failed", f"{_describe(error)}{where}")


def line_of(error: BaseException, filename: str) -> int:
    """The line of a file at which an exception was raised, innermost; 0 where it is in none."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            number = trace.tb_lineno or number
        trace = trace.tb_next
    return number


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
