"""Files and folders: free ones, whole ones, held ones."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import is_offline_mode

import fttt.files
from fttt.errors import RunError, UsageError
from fttt.files import (
    begin_folder,
    check_unused,
    from_hub,
    held_folder,
    hold,
    model_label,
    numbered,
    output_folder,
    write_whole,
)
from fttt.models.loader import load_config
from fttt.store.line_file import LineFile, read_lines
from fttt.tasks.benchmark_data import read_hub
from fttt.testing import save_tiny_model


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "facts.json"
    write_whole(file, "old \ud800")  # a lone surrogate, which a model may write
    assert file.read_bytes() == b"old \xed\xa0\x80"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [
        ("facts.json", b"old \xed\xa0\x80")
    ]


def test_names_are_numbered_from_the_second_on() -> None:
    names = numbered(Path("a/run"))
    assert [next(names) for _ in range(3)] == [Path("a/run"), Path("a/run-2"), Path("a/run-3")]


def test_what_a_killed_beginning_left_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").touch()
    check_unused(tmp_path, "fttt train --resume", ["questions.jsonl"])
    with pytest.raises(UsageError, match="is not empty"):
        check_unused(tmp_path, "fttt train --resume")


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("models/tiny.Q4_1.gguf", "tiny.Q4_1"),
        ("./models/tiny/", "tiny"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_models_are_labelled_by_their_last_part(model: str, label: str) -> None:
    assert model_label(model) == label


def test_a_folder_is_held_until_its_handle_is_closed(tmp_path: Path) -> None:
    one, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    hold(one, tmp_path)
    with pytest.raises(UsageError, match=rf"{tmp_path}.* is in use by another process"):
        hold(other, tmp_path)
    os.close(one)
    hold(other, tmp_path)
    os.close(other)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_folder(tmp_path):
        file = LineFile(tmp_path / "lines.jsonl")
        file.append({"n": 0})
        file.close()
    assert list(read_lines(tmp_path / "lines.jsonl")) == [{"n": 0}]


def test_a_training_begins_in_an_empty_folder(tmp_path: Path) -> None:
    begin_folder(tmp_path / "a" / "b", "fttt train --resume")
    begin_folder(tmp_path / "a" / "b", "fttt train --resume")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"is not empty; name another with --out\.$"):
        begin_folder(tmp_path, "fttt train --resume")
    (tmp_path / "config.toml").touch()
    with pytest.raises(UsageError, match=r"is not empty; .* by `fttt train --resume .*`"):
        begin_folder(tmp_path, "fttt train --resume")
    with pytest.raises(UsageError, match=r"file' is a file; name a folder"):
        begin_folder(tmp_path / "file", "fttt train --resume")
    with pytest.raises(RunError, match=r"Cannot write .*: Not a directory"):
        begin_folder(tmp_path / "file" / "below", "fttt train --resume")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    used = pytest.raises(UsageError, match="in use by another process")
    with held_folder(tmp_path), used, held_folder(tmp_path):
        pass
    with held_folder(tmp_path):
        pass  # the first one has let go


def test_a_folder_that_was_named_is_left_as_it_is(elsewhere: Path) -> None:
    with output_folder(Path("mine/own"), "name") as folder:
        assert folder == Path("mine/own")
        assert not folder.exists()


def test_two_that_begin_at_once_have_a_folder_each(elsewhere: Path) -> None:
    with output_folder(None, "a:b") as one, output_folder(None, "a:b") as other:
        assert one.parent == Path("outputs")
        assert one.name.startswith("a_b-2")
        assert other != one
        (one / "config.toml").touch()
    assert list(Path("outputs").iterdir()) == [one]  # nothing was begun in the other


def test_nothing_is_left_of_what_was_not_begun(elsewhere: Path) -> None:
    with output_folder(None, "name") as folder:
        assert folder.is_dir()
    assert not Path("outputs").exists()


def test_a_place_that_cannot_be_written_is_named(elsewhere: Path) -> None:
    Path("outputs").touch()
    with pytest.raises(RunError, match="Cannot write 'outputs/"):
        output_folder(None, "name").__enter__()
    with pytest.raises(RunError, match="Cannot write 'outputs/below': Not a directory"):
        output_folder(Path("outputs/below"), "name").__enter__()
    with pytest.raises(UsageError, match="'outputs' is a file; name a folder"):
        output_folder(Path("outputs"), "name").__enter__()


def unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fttt.files, "getproxies", dict)


@pytest.mark.parametrize("proxies", [{}, {"no": "localhost"}])
def test_without_a_connection_only_the_cache_is_asked(
    proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fttt.files, "getproxies", lambda: proxies)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with from_hub("nobody/nothing"):
        assert is_offline_mode()
    assert not is_offline_mode()


@pytest.mark.usefixtures("no_proxy")
def test_with_one_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: asked.append(a))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example:8443/hf")
    with from_hub("nobody/nothing"):
        assert not is_offline_mode()
    assert asked == [("mirror.example", 8443)]


def test_a_proxy_resolves_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(fttt.files, "getproxies", lambda: {"https": "http://proxy:3128"})
    with from_hub("nobody/nothing"):
        assert not is_offline_mode()


@pytest.mark.usefixtures("no_proxy")
def test_a_folder_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked"))
    assert load_config(str(save_tiny_model(tmp_path / "tiny"))).model_type == "llama"


@pytest.mark.usefixtures("no_proxy")
def test_a_model_or_data_set_out_of_reach_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="'nobody/nothing' cannot be read"):
        load_config("nobody/nothing")
    with pytest.raises(UsageError, match="'nobody/nothing' could not be loaded from the hub"):
        read_hub("nobody/nothing", None, "test", ["question"])
    assert "Retry" not in "".join(capfd.readouterr())
