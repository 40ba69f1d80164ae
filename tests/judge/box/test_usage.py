from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fttt.judge.box import usage
from fttt.judge.box.usage import Process, Processes, _share


def test_a_process_that_has_ended_since_it_was_seen_has_no_memory() -> None:
    words = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # until then it grows between two looks
        processes = Processes()
        processes.look([child.pid])
        (member,) = processes.families[child.pid]
        assert member.resident > 0
        assert 0 < _share(member) <= member.resident
        child.communicate(b"\n")
        assert _share(member) == 0


def test_the_members_of_a_box_change_with_its_processes() -> None:
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as child:
        processes = Processes()
        processes.look([os.getpid()])
        with_child = processes.members(os.getpid())
        child.communicate(b"\n")
    processes.look([os.getpid()])
    assert child.pid in {pid for pid, _ in with_child - processes.members(os.getpid())}


@pytest.mark.parametrize(("closed", "expected"), [(True, 5), (False, 0)])
def test_what_is_not_ours_to_read_counts_as_a_whole(
    closed: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_read", lambda *_: b"")
    monkeypatch.setattr(usage, "_is_closed", lambda _: closed)
    assert _share(Process(pid=1, parent=0, start=0, cpu=0.0, space=0, resident=5)) == expected
