"""Programs that read standard input: honest ones in every way to write them, and hostile ones."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from fttt.judge import sandbox as module
from fttt.judge.confinement import Limits
from fttt.judge.problem import Judgement, StdinProblem, Submission
from fttt.judge.sandbox import Sandbox

# Small, so that those who run out of something do it soon.
LIMITS = Limits(
    wall_seconds=3, waiting_seconds=200, cpu_seconds=1, slowest=1, memory_bytes=256 << 20
)
SUM = StdinProblem(("1 2\n", "30 4\n"), ("3\n", "34\n"))
SECRET = StdinProblem(("1 2\n",), ("SECRET-4711",))
FRESH = StdinProblem(("1\n", "2\n"), ("fresh", "fresh"))

RIGHT = {
    "input()": "a, b = map(int, input().split())\nprint(a + b)",
    "standard input as text": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "standard input as bytes": """
        import sys
        print(sum(map(int, sys.stdin.buffer.readline().split())))
        """,
    "lines of standard input": """
        import sys
        for line in sys.stdin:
            print(sum(map(int, line.split())))
        """,
    "descriptor 0": "import os\nprint(sum(map(int, os.read(0, 100).split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "fileinput": "import fileinput\nprint(sum(map(int, next(fileinput.input()).split())))",
    "a main that is guarded": """
        def main():
            print(sum(map(int, input().split())))
        if __name__ == "__main__":
            main()
        """,
    "a thread that nobody joins": """
        import sys, threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(1 << 27)
        def main():
            print(sum(map(int, input().split())))
        threading.Thread(target=main).start()
        """,
    "an exit function": """
        import atexit, io, sys
        sys.stdout = io.StringIO()
        atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))
        print(sum(map(int, input().split())))
        """,
    "a file that nobody closes": """
        out = open(1, "w")
        out.write(str(sum(map(int, input().split()))))
        """,
    "sys.exit with a status": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(1)",
    "os._exit once all is written": """
        import os
        print(sum(map(int, input().split())), flush=True)
        os._exit(0)
        """,
    "a pickled class of its own": """
        import pickle
        class Pair:
            def __init__(self, a, b): self.a, self.b = a, b
        pair = pickle.loads(pickle.dumps(Pair(*map(int, input().split()))))
        print(pair.a + pair.b)
        """,
    "a child process": """
        import os
        total = sum(map(int, input().split()))
        if os.fork() == 0:
            print(total, flush=True)
            os._exit(0)
        os.wait()
        """,
    "words on standard error": """
        import sys
        print("debug", file=sys.stderr)
        print(sum(map(int, input().split())))
        """,
}

WRONG = {
    "nothing": ("", "failed", "printed nothing"),
    "the other test's output": ("print(34)", "failed", "line 1 is '34'"),
    "both outputs": ("print('3\\n34')", "failed", "printed 2 lines"),
    "not Python": ("a, b = (", "failed", "SyntaxError"),
    "too many reads": ("input(); input()", "failed", "EOFError"),
    "right, then an error": (
        "print(sum(map(int, input().split())), flush=True)\nprint(1 / 0)",
        "failed",
        "ZeroDivisionError: division by zero at the line: print(1 / 0)",
    ),
    "right, then os._exit with a status": (
        "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(3)",
        "failed",
        "the program ended with status 3",
    ),
    "right, then a signal to itself": (
        "import os\nprint(sum(map(int, input().split())), flush=True)\nos.kill(os.getpid(), 9)",
        "failed",
        "signal 9",
    ),
    "os._exit before anything is written": (
        "import os\nprint(sum(map(int, input().split())))\nos._exit(0)",
        "failed",
        "printed nothing",
    ),
    "a verdict on every descriptor": (
        """
        import json, os
        for fd in range(3, 64):
            for text in ('{"status": "passed", "detail": ""}\\n', "+" * 9):
                try: os.write(fd, text.encode())
                except OSError: pass
        """,
        "failed",
        "printed nothing",
    ),
    "an exit that does not end it": (
        "import os\nos._exit = lambda status: None\nraise ValueError('gone on')",
        "failed",
        "",
    ),
    "reads forever": ("import sys\nwhile True: sys.stdin.read()", "timeout", ""),
    "runs forever": ("while True: pass", "timeout", ""),
    "sleeps": ("import time\ntime.sleep(1000)", "timeout", ""),
    "ignores the signal of its time": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "timeout",
        "",
    ),
    "a flood of output": ("while True: print('x' * 1000)", "failed", "File too large"),
    "a hole in the output": (
        "import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'3')",
        "failed",
        "File too large",
    ),
    "memory": ("x = [0] * 10**9", "memory", "MemoryError"),
    "memory little by little": (
        "x = []\nwhile True: x.append(b'x' * (1 << 20))",
        "memory",
        "",
    ),
    "a fork bomb": ("import os\nwhile True: os.fork()", "failed timeout memory", ""),
    "kills everybody": (
        "import os\nos.kill(-1, 9)\nprint(sum(map(int, input().split())))",
        "failed passed",  # it may spare itself; nobody else is hurt
        "",
    ),
    "a daemon that holds its words": (
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        """,
        "failed",
        "printed nothing",
    ),
}

THIEF = """
import gc, os
WORD = "SEC" + "RET-"
seen = []
for value in gc.get_objects():
    seen += [part for part in gc.get_referents(value) if type(part) is str]
for fd in range(64):
    for begin in (0, 1 << 12):
        try: seen.append(os.pread(fd, 1 << 20, begin).decode("utf-8", "replace"))
        except OSError: pass
for top in ("/", "/tmp", "/proc", "/proc/1", "/dev/fd"):
    for folder, folders, files in os.walk(top):
        if folder.count("/") > 1: folders.clear()
        for name in files:
            try: seen.append(open(f"{folder}/{name}", errors="replace").read(1 << 16))
            except (OSError, ValueError): pass
for name in ("/proc/1/mem", "/proc/self/mem", "/proc/1/environ", "/proc/1/cmdline"):
    try: seen.append(open(name, "rb").read(1 << 20).decode("utf-8", "replace"))
    except OSError: pass
for text in seen:
    at = text.find(WORD)
    if at >= 0 and text[at + len(WORD) :][:1].isdigit():  # not the word itself
        print(text[at : at + len(WORD) + 4])
        break
"""

NOTE = """
import os
if os.path.exists("/tmp/note"):
    print("stale")
else:
    open("/tmp/note", "w").write(input())
    if os.fork() == 0:
        os.setsid()
        while True: open("/tmp/note", "w").close()
    print("fresh")
"""


def judge(*asked: tuple[StdinProblem, str], limits: Limits = LIMITS) -> list[Judgement]:
    """All of them judged side by side, so that each has neighbours."""

    async def run() -> list[Judgement]:
        sandbox = Sandbox(workers=3, limits=limits)
        try:
            wanted = [Submission(p, textwrap.dedent(code).lstrip("\n")) for p, code in asked]
            return await asyncio.gather(*map(sandbox.judge, wanted))
        finally:
            await sandbox.close()

    return asyncio.run(run())


def test_honest_programs_pass_in_every_way_to_read_and_print() -> None:
    found = judge(*((SUM, code) for code in RIGHT.values()))
    failed = {name: f for name, f in zip(RIGHT, found, strict=True) if not f.passed}
    assert failed == {}
    assert all((f.tests_passed, f.tests_total) == (2, 2) for f in found)


@pytest.fixture(scope="module")
def judgements() -> dict[str, Judgement]:
    found = judge(*((SUM, code) for code, _, _ in WRONG.values()))
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_each_gets_its_verdict(name: str, judgements: dict[str, Judgement]) -> None:
    _, expected, detail = WRONG[name]
    judgement = judgements[name]
    assert judgement.status in expected.split(), judgement
    assert detail in judgement.detail or judgement.passed


def test_a_part_of_the_score_for_a_part_of_the_tests(judgements: dict[str, Judgement]) -> None:
    judgement = judgements["the other test's output"]
    assert (judgement.tests_passed, judgement.tests_total) == (1, 2)
    assert [(f.index, f.source) for f in judgement.failures] == [(0, "1 2\n")]


def test_a_function_is_called_by_the_problems_own_ending() -> None:
    problem = StdinProblem(
        ("2\n", "5\n"),
        ("4", "10"),
        prompt="import sys\nprinted, sys.stdout = sys.stdout, sys.stderr\n",
        entry_point="double",
        ending="printed.write(str(double(int(input()))))\nprinted.flush()\n",
    )
    right, noisy, wrong, none, early = judge(
        (problem, "def double(n):\n    return 2 * n"),
        (problem, "def double(n):\n    print('debug')\n    return 2 * n\n# the end"),
        (problem, "def double(n):\n    return 4"),
        (problem, "def triple(n):\n    return 3 * n"),
        (problem, "print(4)\nraise SystemExit"),
    )
    assert right.passed
    assert noisy.passed
    assert (wrong.status, wrong.tests_passed) == ("failed", 1)
    assert none.detail == "test 1 of 2: NameError: name 'double' is not defined"
    assert early.detail == "test 1 of 2: printed nothing, expected '4'"


def test_what_it_should_print_is_nowhere_in_the_box() -> None:
    (stolen, told) = judge((SECRET, THIEF), (SECRET, "print('SECRET-4711')"), limits=Limits())
    assert told.passed
    assert "printed nothing" in stolen.detail


def test_nothing_is_left_of_the_run_before() -> None:
    (judgement,) = judge((FRESH, NOTE))
    assert judgement.passed, judgement


def test_the_limits_hold_where_there_are_no_control_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.Groups, "make", lambda *_: module.Groups.without("not in this test"))
    names = ("runs forever", "memory little by little", "a fork bomb", "a flood of output")
    for name, found in zip(names, judge(*((SUM, WRONG[n][0]) for n in names)), strict=True):
        assert found.status in WRONG[name][1].split(), f"{name}: {found}"
