from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from fttt.errors import RunError, UsageError
from fttt.judge import launch, rehearsal
from fttt.judge import sandbox as module
from fttt.judge.cgroups import COUNTED
from fttt.judge.confinement import Limits
from fttt.judge.problem import Judgement, Problem, Submission
from fttt.judge.sandbox import ExhaustedError, Sandbox

ADD = Problem("", "def check(f):\n    assert f(1, 2) == 3\n", "add")
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
SLOW = "import time\ntime.sleep(0.5)\n" + RIGHT
SLEEP = "import time\ntime.sleep(1000)\n"
DAEMON = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n" + RIGHT


def use(action: Callable[[Sandbox], Awaitable[Judgement]], **options: object) -> Judgement:
    """Run an action with a sandbox that is closed afterwards."""

    async def run() -> Judgement:
        sandbox = Sandbox(**{"workers": 2, **options})  # type: ignore[arg-type]
        try:
            return await action(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(run())


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def caught(
    sandbox: Sandbox, source: str, condition: Callable[[], bool]
) -> asyncio.Task[Judgement]:
    """A submission that is being judged while the condition holds.

    The moment may pass unseen on a busy machine; then the submission is judged once more.
    """
    for _ in range(20):
        task = asyncio.create_task(sandbox.judge(Submission(ADD, source)))
        while not task.done():
            if condition():
                return task
            await asyncio.sleep(0.01)
    raise AssertionError("the moment was never seen")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_tests_are_prepared_once_and_nothing_of_a_submission_is_in_them() -> None:
    """What later boxes load was written before the submission of the first began to run."""
    spoil = "import os\nfor fd in range(3, 64):\n    try:\n        os.ftruncate(fd, 0)\n"
    spoil += "        os.pwrite(fd, b'SPOILED', 0)\n    except OSError:\n        pass\n"

    async def judge(sandbox: Sandbox) -> Judgement:
        assert (await sandbox.judge(Submission(ADD, spoil + RIGHT))).status in ("passed", "failed")
        kept = sandbox._prepared.get(ADD)
        assert kept is not None
        assert b"SPOILED" not in kept
        assert (await sandbox.judge(Submission(ADD, WRONG))).status == "failed"
        assert sandbox._prepared.get(ADD) is kept
        return await sandbox.judge(Submission(ADD, RIGHT))

    assert use(judge, workers=1).passed


def test_all_layers_of_the_minimum_hold_here() -> None:
    async def report() -> list[str]:
        sandbox = Sandbox(workers=1)
        try:
            found = await sandbox.start()
            assert found.missing == ()
            return found.lines()
        finally:
            await sandbox.close()

    assert "seccomp: holds" in asyncio.run(report())


def test_one_box_after_another_and_side_by_side() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        codes = [RIGHT, WRONG] * 4
        found = await asyncio.gather(*(sandbox.judge(Submission(ADD, code)) for code in codes))
        assert [judgement.passed for judgement in found] == [True, False] * 4
        return found[1]

    assert use(judge).detail == "AssertionError:  at line 2 of the tests: assert f(1, 2) == 3"


def test_no_more_boxes_at_once_than_workers() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, sandbox.busy)
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        found = await asyncio.gather(*(sandbox.judge(Submission(ADD, RIGHT)) for _ in range(12)))
        looking.cancel()
        assert 1 <= most <= 2
        return found[0]

    assert use(judge).passed


def test_the_tests_own_faults_are_no_fault_of_the_submission() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        for test in ("def check(f:\n", "x = 1\n"):
            found = await sandbox.judge(Submission(Problem("", test, "add"), RIGHT))
            assert found.status == "error"
        return found

    assert use(judge).detail == "the problem's tests define no function check"


def test_processor_time_runs_out_before_the_wall_clock() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        return await sandbox.judge(Submission(ADD, "while True: pass"))

    judgement = use(judge, limits=Limits(wall_seconds=200, cpu_seconds=1, slowest=1))
    assert judgement.status == "timeout"
    assert judgement.seconds < 200


def test_nothing_of_a_box_outlives_it_or_the_sandbox() -> None:
    before, open_before = descendants(), descriptors()

    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        idle, open_idle = descendants(), descriptors()
        for _ in range(3):
            found = await sandbox.judge(Submission(ADD, DAEMON))
        assert descendants() == idle
        assert descriptors() == open_idle
        return found

    assert use(judge).passed
    assert descendants() == before
    assert descriptors() <= open_before + 1  # the event loop's own signal socket may linger


def test_cancelling_ends_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_SECONDS", 120.0)

    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        idle = descendants()
        task = await caught(sandbox, SLEEP, lambda: sandbox.busy > 0 and descendants() != idle)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descendants() == idle
        return await sandbox.judge(Submission(ADD, RIGHT))

    assert use(judge, workers=1).passed


def test_a_killed_zygote_is_replaced_and_its_submission_judged_again() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        task = await caught(sandbox, SLOW, lambda: sandbox.busy > 0)
        assert sandbox._running is not None
        sandbox._running.zygote.process.send_signal(signal.SIGKILL)
        return await task

    assert use(judge).passed


def box_processes(sandbox: Sandbox) -> list[psutil.Process]:
    """The processes of the boxes that run: their first ones, then those below."""
    assert sandbox._running is not None
    top = psutil.Process(sandbox._running.zygote.process.pid)
    while (below := top.children())[0].name() == "bwrap":
        top = below[0]
    (zygote,) = below
    return [box for keeper in zygote.children() for box in keeper.children(recursive=True)]


KILLS = [(who, number) for who in ("first", "all") for number in (signal.SIGKILL,)]
KILLS += [("second", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(("who", "number"), KILLS)
def test_a_box_that_is_killed_from_outside_is_judged_again(
    who: str, number: signal.Signals
) -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        task = await caught(sandbox, SLOW, lambda: len(box_processes(sandbox)) == 2)
        victims = {"first": slice(1), "second": slice(1, 2), "all": slice(None, None, -1)}[who]
        for process in box_processes(sandbox)[victims]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the one before
                process.send_signal(number)
        return await task

    assert use(judge, workers=1).passed


def test_a_program_that_ends_itself_is_tried_twice_and_has_failed() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        suicide = "import os\ndef add(a, b):\n    os.kill(os.getpid(), 9)\n"
        return await sandbox.judge(Submission(ADD, suicide))

    judgement = use(judge)
    assert judgement.status == "failed"
    assert "signal 9" in judgement.detail


def test_a_box_that_is_always_killed_is_an_error_of_the_run_and_no_verdict() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        task = asyncio.create_task(sandbox.judge(Submission(ADD, SLEEP)))
        while not task.done():
            for process in box_processes(sandbox)[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.sleep(0.02)
        return await task

    with pytest.raises(RunError, match="broke down 3 times: its boxes were killed from outside"):
        use(judge, workers=1)


def test_neighbours_that_use_all_processors_do_not_make_an_honest_program_late() -> None:
    busy = (
        "import os, time\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        while True: pass\n"
        "time.sleep(1000)\n"
    )
    work = "def add(a, b):\n    for _ in range(2_000_000): pass\n    return a + b\n"

    async def judge(sandbox: Sandbox) -> Judgement:
        crowd = [asyncio.create_task(sandbox.judge(Submission(ADD, busy))) for _ in range(3)]
        honest = await sandbox.judge(Submission(ADD, work))
        assert {judgement.status for judgement in await asyncio.gather(*crowd)} == {"timeout"}
        return honest

    limits = Limits(wall_seconds=1, waiting_seconds=200, cpu_seconds=1, slowest=1)
    assert use(judge, workers=4, limits=limits).passed


def test_groups_that_no_box_can_join_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(places: int, *_: object) -> module.Groups:
        groups = module.Groups(versions=dict.fromkeys(COUNTED, "2"))
        groups._fds.append(os.open("/dev/full", os.O_RDWR))
        groups._zygote["join"] = 0
        groups._places = [{} for _ in range(places)]
        return groups

    monkeypatch.setattr(module.Groups, "make", make)

    async def judge(sandbox: Sandbox) -> Judgement:
        report = await sandbox.start()
        assert "could not join its group" in report.counting["memory"]
        return await sandbox.judge(Submission(ADD, RIGHT))

    assert use(judge).passed


def test_each_start_has_the_same_hash_seed() -> None:
    code = "def order():\n    return list({'a', 'b', 'c', 'd', 'e', 'f'}), hash('seed')\n"
    show = Problem("", "def check(f):\n    raise AssertionError(f())\n", "order")

    async def judge(sandbox: Sandbox) -> Judgement:
        return await sandbox.judge(Submission(show, code))

    assert use(judge).detail == use(judge).detail


def test_a_library_that_submissions_cannot_import_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the mount hides it from all but the user who started the judge."""
    monkeypatch.setattr(Sandbox, "_rehearsed", {})
    real = rehearsal._missing

    async def missing(judge: rehearsal.Judging, names: list[str]) -> str:
        return await real(judge, [*names, "no_such_module", "nor_this"])

    monkeypatch.setattr(rehearsal, "_missing", missing)

    async def judge(sandbox: Sandbox) -> Judgement:
        report = await sandbox.start()
        assert report.faults["library"] == "no_such_module, nor_this"
        return await sandbox.judge(Submission(ADD, RIGHT))

    with pytest.raises(RunError, match=r"lacks library \(no_such_module, nor_this\).* may read"):
        use(judge)
    assert use(judge, allow_weaker=True).passed


def test_a_sandbox_that_judges_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "_rehearsed", {})

    async def wrong(self: Sandbox, *args: object, **kwargs: object) -> tuple[Judgement, bytes]:
        return Judgement("passed"), b""

    monkeypatch.setattr(Sandbox, "_run_box", wrong)

    async def judge(sandbox: Sandbox) -> Judgement:
        return await sandbox.judge(Submission(ADD, RIGHT))

    with pytest.raises(RunError, match="a wrong program was judged 'passed'"):
        use(judge, allow_weaker=True)


def test_running_out_of_descriptors_is_no_verdict() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(), hard))
        taken: list[int] = []
        try:
            with contextlib.suppress(OSError):  # the limit is on numbers, of which some are free
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(ExhaustedError, match="ulimit -n"):
                await sandbox.judge(Submission(ADD, RIGHT))
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return await sandbox.judge(Submission(ADD, RIGHT))

    assert use(judge).passed


def test_an_ordinary_user_judges_as_root_does(tmp_path: Path) -> None:
    """By an interpreter that everybody may read, since root's own is often in root's home."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    packages = str(Path(psutil.__file__).parents[1])
    source = str(Path(module.__file__).parents[2])
    program = (
        f"import sys; sys.path[:0] = [{source!r}, {packages!r}]\n"
        "import asyncio, faulthandler\n"
        "faulthandler.dump_traceback_later(180, exit=True)\n"
        "from fttt.judge.sandbox import Sandbox\n"
        "from fttt.judge.problem import Problem, Submission\n"
        "async def main():\n"
        "    sandbox = Sandbox(workers=1)\n"
        f"    problem = Problem('', {ADD.test!r}, 'add')\n"
        f"    for code in ({RIGHT!r}, {WRONG!r}, 'import asyncio, csv, hashlib\\n' + {RIGHT!r}):\n"
        "        print((await sandbox.judge(Submission(problem, code))).status)\n"
        "    await sandbox.close()\n"
        "asyncio.run(main())\n"
    )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Became by exec: to fork this process whole, with the threads of its libraries, may never end.
    become = (sys.executable, "-I", "-S", "-c", launch._BECOME, "64999")
    for interpreter in (os.path.realpath(sys.executable), f"/usr/bin/python{version}"):
        run = subprocess.run(
            [*become, interpreter, "-c", program],
            capture_output=True,
            text=True,
            cwd="/",
            env={},
            check=False,
            timeout=200,
        )
        if not re.search("PermissionError|FileNotFoundError", run.stderr):
            assert run.stdout.split() == ["passed", "failed", "passed"], run.stderr
            return
    pytest.skip("no interpreter that other users may read")


def test_an_event_loop_that_is_held_up_makes_nothing_look_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by an engine's long pass on a CPU, while the sandbox starts and while a box runs.

    The loop is held up until what it waits for is there, and an hour of its clock is over.
    """
    launched = []
    launch_way = launch.Way.launch

    def launch_and_keep(way: launch.Way) -> launch.Zygote:
        launched.append(launch_way(way))
        return launched[-1]

    monkeypatch.setattr(launch.Way, "launch", launch_and_keep)

    def hold_up(control: socket.socket) -> None:
        assert select.select([control], [], [], 120)[0]
        loop = asyncio.get_running_loop()
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + 3600)

    async def judge(sandbox: Sandbox) -> Judgement:
        starting = asyncio.create_task(sandbox.start())
        await asyncio.sleep(0)
        hold_up(launched[0].control)
        await starting
        first = sandbox._running
        task = await caught(sandbox, SLOW, lambda: sandbox.busy > 0)
        hold_up(launched[0].control)
        found = await task
        assert sandbox._running is first
        assert launched == [first.zygote]
        return found

    assert use(judge).passed


def test_a_closed_sandbox_starts_again_and_closing_twice_is_harmless() -> None:
    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        await sandbox.close()
        await sandbox.close()
        return await sandbox.judge(Submission(ADD, RIGHT))

    assert use(judge).passed


def test_a_killed_owner_leaves_nothing_behind(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        "import asyncio\n"
        "from fttt.judge.confinement import Limits\n"
        "from fttt.judge.sandbox import Sandbox\n"
        "from fttt.judge.problem import Problem, Submission\n"
        "async def main():\n"
        "    sandbox = Sandbox(workers=2, limits=Limits(wall_seconds=200))\n"
        "    await sandbox.start()\n"
        "    print('up', flush=True)\n"
        f"    submission = Submission(Problem('', '', 'f'), {SLEEP!r})\n"
        "    await asyncio.gather(sandbox.judge(submission), sandbox.judge(submission))\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            process = psutil.Process(owner.pid)
            # bubblewrap's two, the zygote, two keepers, and two of each box.
            while len(children := process.children(recursive=True)) < 9:
                assert owner.poll() is None, "it ended"
                time.sleep(0.02)
        finally:
            owner.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_without_bubblewrap_it_refuses_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "bubblewrap", lambda: None)

    async def judge(sandbox: Sandbox) -> Judgement:
        report = await sandbox.start()
        # The user that root becomes may be unable to read this interpreter's files.
        assert {layer.name for layer in report.missing} - {"library"} == {"bubblewrap"}
        assert "MISSING" in report.lines()[0]
        return await sandbox.judge(Submission(ADD, RIGHT))

    with pytest.raises(RunError, match="--allow-weaker-sandbox"):
        use(judge)
    assert use(judge, allow_weaker=True).passed


def test_without_seccomp_it_refuses_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_filter", lambda **_: (b"", "libseccomp: not found"))

    async def judge(sandbox: Sandbox) -> Judgement:
        return await sandbox.judge(Submission(ADD, RIGHT))

    with pytest.raises(RunError, match=r"lacks seccomp \(libseccomp: not found\)"):
        use(judge)
    assert use(judge, allow_weaker=True).passed


def test_without_namespaces_a_box_still_takes_its_orphans_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = tuple(layer for layer in module.LAYERS if layer.name in ("limits", "seccomp"))
    monkeypatch.setattr(module, "LAYERS", kept)
    monkeypatch.setattr(module, "bubblewrap", lambda: None)
    bomb = (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    )

    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        idle = descendants()
        assert (await sandbox.judge(Submission(ADD, DAEMON))).passed
        assert not (await sandbox.judge(Submission(ADD, bomb))).passed
        assert descendants() == idle
        return await sandbox.judge(Submission(ADD, RIGHT))

    limits = Limits(wall_seconds=2, cpu_seconds=1, slowest=1)
    assert use(judge, workers=1, allow_weaker=True, limits=limits).passed


def test_a_soak_of_mixed_submissions_leaves_no_trace() -> None:
    segfault = "import ctypes\nctypes.string_at(0)\n"
    cases = [(RIGHT, "passed"), (WRONG, "failed"), (DAEMON, "passed"), (segfault, "failed")]
    cases += [("import os\nos._exit(0)", "failed"), ("x" * 2_000_000, "failed"), ("(", "failed")]

    async def judge(sandbox: Sandbox) -> Judgement:
        await sandbox.judge(Submission(ADD, RIGHT))
        idle, open_idle = descendants(), descriptors()
        for _ in range(5):
            work = cases * 9
            found = await asyncio.gather(*(sandbox.judge(Submission(ADD, c)) for c, _ in work))
            assert [judgement.status for judgement in found] == [status for _, status in work]
        assert descendants() == idle
        assert descriptors() == open_idle
        return found[0]

    assert use(judge).passed


def test_a_number_of_workers_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="workers is 0"):
        Sandbox(workers=0)


def test_every_test_runs_and_is_counted() -> None:
    tests = (
        "def check(f):\n    assert f(1, 1) == 3\n    assert f(1, 2) == 3\n    assert f(0, 0) == 0\n"
    )

    async def judge(sandbox: Sandbox) -> Judgement:
        wrong = "def add(a, b):\n    return a + b if a < b else b and a + a\n"
        found = await sandbox.judge(Submission(Problem("", tests, "add"), wrong))
        assert (found.tests_passed, found.tests_total, found.status) == (2, 3, "failed")
        assert [(f.index, f.source) for f in found.failures] == [(0, "assert f(1, 1) == 3")]
        return await sandbox.judge(Submission(ADD, RIGHT))

    judgement = use(judge)
    assert (judgement.tests_passed, judgement.tests_total, judgement.failures) == (1, 1, ())


def test_what_passed_before_a_limit_is_counted_and_a_failure_before_it_decides() -> None:
    tests = "def check(f):\n" + "".join(f"    assert f({n}) == {n}\n" for n in range(4))
    hangs = "def same(n):\n    if n == 2:\n        while True: pass\n    return n"

    async def judge(sandbox: Sandbox) -> Judgement:
        problem = Problem("", tests, "same")
        found = await sandbox.judge(Submission(problem, hangs))
        assert (found.status, found.tests_passed, found.tests_total) == ("timeout", 2, 4)
        return await sandbox.judge(Submission(problem, hangs + " + (n == 0)"))

    judgement = use(judge, limits=Limits(cpu_seconds=1, slowest=1))
    assert (judgement.status, judgement.tests_passed, judgement.tests_total) == ("failed", 1, 4)
    assert judgement.detail.startswith("AssertionError")
