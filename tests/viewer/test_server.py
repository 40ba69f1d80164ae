"""The page's service: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fttt.errors import UsageError
from fttt.testing import call
from fttt.viewer import Watcher, create_view, serve_view

Grow = Callable[..., Any]


@pytest.fixture
def watcher(grow: Grow, tmp_path: Path) -> Watcher:
    """One run with two trials, read."""
    grow("mine").trials("q/1", "ii")
    watcher = Watcher(tmp_path / "runs")
    while watcher.step():
        pass
    return watcher


class Client:
    """Asks the application in this process."""

    def __init__(self, watcher: Watcher) -> None:
        self._transport = httpx.ASGITransport(create_view(watcher))

    def get(self, path: str, **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            client = httpx.AsyncClient(
                transport=self._transport, base_url="http://127.0.0.1:8000", headers=headers
            )
            async with client:
                return await client.get(path)

        return asyncio.run(ask())


@pytest.fixture
def client(watcher: Watcher) -> Client:
    return Client(watcher)


def test_the_page_runs_no_script_but_its_own_files(client: Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "<script>" not in answer.text
    assert " onclick" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    for name in ("trials.js", "view.js", "report.css"):
        file = client.get(f"/assets/{name}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "//" in file.text or "{" in file.text


@pytest.mark.parametrize(
    "path",
    [
        "/assets/page.py", "/assets/..%2fpage.py", "/assets/../../page.py", "/etc/passwd",
        "/runs/../../etc/passwd/settings", "/runs/..%2f..%2fetc/settings", "/docs",
        "/runs/mine/settings", "/runs/mine/curves", "/runs/0/questions/0", "/openapi.json",
    ],
)  # fmt: skip
def test_nothing_but_keys_of_runs_is_found(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "content-security-policy" in answer.headers


def test_a_foreign_host_is_refused(client: Client) -> None:
    assert client.get("/", host="evil.example").status_code == 400
    assert client.get("/", host="localhost:9").status_code == 200


def test_a_question_is_answered_with_all_that_was_written(client: Client, watcher: Watcher) -> None:
    (key,) = watcher.runs
    prompt, gold, trials = client.get(f"/runs/{key}/questions/1").json()
    assert prompt.startswith("What is q/1?")
    assert "\ud800" in gold
    first, second = trials
    assert first[:2] == [1, "i"]
    assert first[5] == 0.25
    assert first[8] == 7
    assert first[13] == "divergence 0.5"
    assert first[14] is None  # it did not think
    assert first[15].startswith("No: hint 0 </script>")
    assert second[0] == 2
    for place in (3, -1):
        assert client.get(f"/runs/{key}/questions/{place}").status_code == 404
    assert '"seed": 1' in client.get(f"/runs/{key}/settings").json()
    drawn = client.get(f"/runs/{key}/curves").json()
    assert len(drawn["figures"]) == 3


def test_a_port_in_use_is_one_sentence(
    watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127.0.0.1 is in use; choose"):
            serve_view(watcher, port=port, say=print)
        assert call("view", str(watcher.folder), "--port", str(port)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert call("view", str(watcher.folder), "--port", "70000") == 2


def test_a_missing_package_is_named_with_its_extra(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fttt.cli.reports.find_spec", lambda name: None)
    assert call("view", str(watcher.folder)) == 2
    said = capsys.readouterr().err
    assert "needs the package 'jinja2'" in said
    assert "pip install 'fttt[view]'" in said


def test_no_browser_is_opened_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    from fttt.viewer.server import _has_screen

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not _has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert _has_screen()
