"""Append-only JSON lines: torn tails, full disks, two writers."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.store import line_file
from fttt.store.line_file import LineFile, LineTail, read_line_at, read_lines

LAST = '{"n":2,"text":"ä\\n"}\n'.encode()


def _fill(path: Path, count: int) -> None:
    file = LineFile(path)
    for n in range(count):
        file.append({"n": n, "text": "ä\n"})
    file.close()


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 3)
    _fill(path, 2)
    assert [line["n"] for line in read_lines(path)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("cut", range(1, len(LAST)))
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 3)
    whole = path.read_bytes()
    assert whole.endswith(LAST)
    path.write_bytes(whole[:-cut])
    assert [line["n"] for line in read_lines(path)] == [0, 1]
    file = LineFile(path)
    file.append({"n": 7})
    file.close()
    assert [line["n"] for line in read_lines(path)] == [0, 1, 7]


def test_a_last_line_of_zero_bytes_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 2)
    path.write_bytes(path.read_bytes() + b"\0" * 40)
    assert [line["n"] for line in read_lines(path)] == [0, 1]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 0}\nnonsense\n{"n": 1}\n')
    with pytest.raises(UsageError, match=r"Line 2 of .*'nonsense'"):
        list(read_lines(path))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    first = LineFile(path)
    with pytest.raises(UsageError, match="in use by another process"):
        LineFile(path)
    first.close()
    LineFile(path).close()


def test_a_full_disk_names_the_file() -> None:
    file = LineFile(Path("/dev/full"))
    with pytest.raises(RunError, match=r"Cannot write '/dev/full': No space left on device"):
        file.append({"n": 0})
    with pytest.raises(RunError, match="No space left"):  # and it stays an error
        file.append({"n": 1})
    file.close()


def test_a_line_that_did_not_fit_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    script = """
import resource, sys
from pathlib import Path
from fttt.errors import RunError
from fttt.store.line_file import LineFile
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
file = LineFile(Path(sys.argv[1]))
for n in range(100):
    try:
        file.append({"n": n, "text": "x" * 90})
    except RunError as error:
        print(n, error)
        break
file.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    written = int(done.stdout.split()[0])
    assert "File too large" in done.stdout
    assert path.read_bytes().endswith(b"\n")
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [*range(written)]


def test_many_lines_cost_little(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    before = resource.getrusage(resource.RUSAGE_SELF)
    _fill(path, 20_000)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 5.0  # seconds of processor time; a sync a line would block, not burn
    assert sum(1 for _ in read_lines(path)) == 20_000


def test_a_slow_disk_is_not_waited_for_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, entered = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        entered.set()
        assert release.wait(120)

    monkeypatch.setattr(line_file, "_SYNC_SECONDS", 0.0)
    file = LineFile(tmp_path / "lines.jsonl")
    monkeypatch.setattr(os, "fsync", slow)
    file.append({"n": 0})  # returns while the disk is busy
    assert entered.wait(120)
    monkeypatch.setattr(line_file, "_SYNC_SECONDS", 1000.0)
    file.append({"n": 1})
    closing = threading.Thread(target=file.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    release.set()
    closing.join(120)
    assert not closing.is_alive()


def test_a_disk_that_fails_is_told_by_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(line_file, "_SYNC_SECONDS", 0.0)
    file = LineFile(tmp_path / "lines.jsonl")
    monkeypatch.setattr(os, "fsync", fail)
    file.append({"n": 0})
    with pytest.raises(RunError, match="Input/output error"):
        file.append({"n": 1})
    with pytest.raises(RunError, match="Input/output error"):  # and it stays an error
        file.append({"n": 2})
    file.close()


def test_a_tail_reads_each_line_once_however_the_bytes_arrive(tmp_path: Path) -> None:
    path, whole = tmp_path / "lines.jsonl", tmp_path / "whole.jsonl"
    tail = LineTail(path)
    assert tail.read() == []  # not there yet
    _fill(whole, 20)
    data = whole.read_bytes()
    found = []
    with path.open("ab", buffering=0) as file:
        for start in range(0, len(data), 7):
            file.write(data[start : start + 7])
            found += tail.read()
    assert [record["n"] for _, record in found] == list(range(20))
    assert [read_line_at(path, offset) for offset, _ in found] == [one for _, one in found]
    assert (tail.waiting, tail.broken, tail.replaced) == (0, "", False)


def test_a_tail_reads_in_slices(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 100)
    tail = LineTail(path)
    slices = []
    while tail.waiting:
        slices.append(len(tail.read(200)))
    assert sum(slices) == 100
    assert len(slices) > 5


def test_a_tail_waits_for_a_torn_line_which_a_resumed_run_cuts_off(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 2)
    tail = LineTail(path)
    with path.open("ab") as file:
        file.write(b'{"n":2,"te')
    assert [record["n"] for _, record in tail.read()] == [0, 1]
    assert tail.read() == []
    _fill(path, 1)  # another process cuts it off and goes on
    assert [record["n"] for _, record in tail.read()] == [0]
    assert (tail.replaced, tail.broken) == (False, "")


def test_a_tail_passes_over_a_broken_line_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n":0}\nrubbish\n')
    tail = LineTail(path)
    assert len(tail.read()) == 1
    assert tail.broken == ""  # the last line may be torn
    with path.open("ab") as file:
        file.write(b'{"n":1}\n')
    assert [record["n"] for _, record in tail.read()] == [1]
    assert "A line of" in tail.broken
    assert "rubbish" in tail.broken


def test_a_tail_knows_another_file_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _fill(path, 3)
    tail = LineTail(path)
    tail.read()
    path.rename(tmp_path / "old.jsonl")
    _fill(path, 5)
    assert tail.replaced


def test_a_key_is_left_out_only_where_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    text = 'he wrote ,"ids":[1,2] and "ids":[3]'
    file.append({"text": text, "ids": [7, 8, 9], "n": 1})
    file.append({"ids": [1], "text": text})  # a first key has no comma before it
    file.append({"text": text})
    file.close()
    records = [record for _, record in LineTail(path, without="ids").read()]
    assert records == [{"text": text, "n": 1}, {"ids": [1], "text": text}, {"text": text}]
    with pytest.raises(UsageError, match="begins at byte 3"):
        read_line_at(path, 3)
