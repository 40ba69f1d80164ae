"""Runs pushed to and pulled from a hub: the client is the real one, the hub a small server."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from fttt.store import RUN_FILES, Run
from fttt.testing import call

SHA = "0123456789" * 4
TOKEN = "hf_" + "Abcd" * 8


class Hub:
    """The hub's routes that a push and a pull ask for, and what its datasets hold."""

    def __init__(self) -> None:
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.readonly = False
        self.asked: list[str] = []

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if token not in (None, f"Bearer {TOKEN}"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            if self.readonly:
                return 403, {"error": "You don't have the rights to create a dataset"}
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.datasets[name] = {".gitattributes": b""}
            self.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return 200, {"url": f"{constants.ENDPOINT}/datasets/{name}", "id": name}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        kind, _, rest = path.partition("/datasets/")
        owner, name, *more = rest.split("/", 3)
        files = self.datasets.get(f"{owner}/{name}")
        if files is None or (token is None and self.private[f"{owner}/{name}"]):
            return 404, {"error": "Repository not found"}
        if not kind:  # resolve/REVISION/FILE
            content = files.get(more[1].partition("/")[2])
            return (404, {"error": "Entry not found"}) if content is None else (200, content)
        if more[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            same = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file["path"], **same} for file in asked]}
        if more[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{constants.ENDPOINT}/datasets/{owner}/{name}/commit/{SHA}"
            return 200, {"commitUrl": url, "commitOid": SHA}
        siblings = [{"rfilename": file} for file in files]
        private = self.private[f"{owner}/{name}"]
        return 200, {
            "id": f"{owner}/{name}", "sha": SHA, "private": private, "siblings": siblings
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        status, answer = self.hub.answer(
            self.command, path, body, self.headers.get("Authorization")
        )
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if isinstance(answer, bytes):
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", hashlib.sha1(data).hexdigest())
        elif status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_HEAD = do

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this machine, and a token that it takes."""
    handler = type("Own", (Handler,), {"hub": Hub()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield handler.hub
        server.shutdown()
        thread.join(timeout=10)


@pytest.fixture
def run(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run, whose settings name a folder of the user's."""
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    made: Run = make_run(
        "run",
        {"q1": "iic", "q2": "iiii"},
        feedback=f"Traceback: {tmp_path}/alice/check.py, line 3",
        data={"data_dir": f"{tmp_path}/alice/questions", "options": {"other": "/home/bob/x"}},
    )
    (made.path / "run.log").write_text("2026-11-28 began\n")
    (made.path / "notes.txt").write_text("of the user's own")
    return made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def test_a_run_comes_back_as_it_was(
    hub: Hub, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("push", str(run.path), "alice/tries", "--license", "apache-2.0") == 0
    assert "Pushed 8 files" in (printed := capsys.readouterr().out)
    assert f"{constants.ENDPOINT}/datasets/alice/tries (private)" in printed
    stored = hub.datasets["alice/tries"]
    assert set(stored) == {*RUN_FILES, "README.md", ".gitattributes"}
    everything = b"".join(stored.values())
    for hidden in (f"{tmp_path}/alice", "/home/bob", TOKEN):
        assert hidden.encode() not in everything
    assert 'data_dir = "~/questions"' in stored["config.toml"].decode()
    assert b"Traceback: ~/check.py" in stored["events.jsonl"]
    assert stored["questions.jsonl"] == (run.path / "questions.jsonl").read_bytes()

    assert call("pull", "alice/tries", "--out", str(tmp_path / "new" / "back")) == 0
    assert "1/2" in capsys.readouterr().out
    back = Run.open(tmp_path / "new" / "back")
    assert back.trials == run.trials
    assert back.summary == run.summary
    assert {path.name for path in back.path.iterdir()} == set(RUN_FILES)
    assert [path.name for path in back.path.parent.iterdir()] == ["back"]


def test_the_card_tells_the_run_and_keeps_what_its_owner_wrote(
    hub: Hub, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("push", str(run.path), "alice/tries", "--public") == 0
    assert "(public)" in capsys.readouterr().out
    card = hub.datasets["alice/tries"]["README.md"].decode()
    assert "license:" not in card.partition("\n---\n")[0]
    assert "| solved | 1 of 2 |" in card
    assert "| 2 trials | 0.0 % |\n| 4 trials | 50.0 % |" in card
    assert "fttt pull alice/tries" in card
    assert '```toml\nmethod = "best-of-n"' in card
    owned = card.replace("---\n", "---\nlicense: cc-by-4.0\nlanguage:\n- en\n", 1)
    hub.datasets["alice/tries"]["README.md"] = owned.encode()
    assert call("push", str(run.path), "alice/tries") == 0
    assert "(public)" in capsys.readouterr().out  # as it was made
    head = hub.datasets["alice/tries"]["README.md"].decode().partition("\n---\n")[0]
    assert "license: cc-by-4.0" in head
    assert "- en" in head


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("config.toml", 'verifier = "command:ask --key sk-0123456789abcdefghijkl"', "an API key"),
        ("environment.json", '{"endpoint": {"url": "http://me:pass1@host/v1"}}', "a password"),
        ("run.log", "Authorization: Bearer 0123456789abcdefgh", "an authorization"),
        ("run.log", "MY_API_KEY=abcdef123", "a key or password"),
        ("trials.jsonl", "own-secret-value", "a secret of this environment"),
    ],
)
def test_a_secret_is_never_sent(
    hub: Hub,
    run: Run,
    file: str,
    text: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "own-secret-value")
    path = run.path / file
    if file == "trials.jsonl":
        path.write_text(path.read_text().replace("answer is 4", text))
    elif file == "environment.json":
        path.write_text(text)
    else:
        path.write_text(f"{path.read_text()}\n# {text}\n")
    assert call("push", str(run.path), "alice/tries") == 2
    told = said(capsys)
    assert kind in told
    assert file in told
    assert text not in told
    assert hub.asked == []


def test_what_is_no_secret_is_no_hindrance(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of tokens, keys of model files, and a key that a model made up."""
    monkeypatch.setenv("DEBUG_TOKENS", "1")
    with (run.path / "config.toml").open("a") as file:
        file.write('[more]\nthink_tokens = 4096\ntoken_budget = 100000\nkey = "q_proj"\n')
    path = run.path / "trials.jsonl"
    path.write_text(path.read_text().replace("answer is 4", "key is sk-" + "a" * 30))
    assert call("push", str(run.path), "alice/tries") == 0


def test_only_a_finished_run_of_its_own_repository_is_pushed(
    hub: Hub, run: Run, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tries", "a/b/c", "../x", "a b/c"):
        assert call("push", str(run.path), name) == 2
        assert "write owner/name" in said(capsys)
    half = make_run("half", {"q1": "i"}, finish=False)
    assert call("push", str(half.path), "alice/tries") == 2
    assert "is unfinished" in said(capsys)
    hub.datasets["alice/other"], hub.private["alice/other"] = {"train.parquet": b""}, True
    assert call("push", str(run.path), "alice/other") == 2
    assert "holds other files than a run's (train.parquet)" in said(capsys)
    secret = run.path.parent / "secret"
    secret.write_text("of this machine")
    (run.path / "run.log").unlink()
    (run.path / "run.log").symlink_to(secret)
    assert call("push", str(run.path), "alice/tries") == 0
    assert "run.log" not in hub.datasets["alice/tries"]


def test_a_refusal_is_one_sentence(
    hub: Hub,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.readonly = True
    assert call("push", str(run.path), "bob/tries") == 2
    assert "may not write to 'bob/tries'" in said(capsys)
    assert call("pull", "bob/nothing", "--out", str(tmp_path / "a" / "b")) == 2
    assert "The hub has no dataset 'bob/nothing'" in said(capsys)
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "zzzz" * 8)
    assert call("push", str(run.path), "bob/tries") == 2
    assert "does not take the token" in said(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for command in (["push", str(run.path)], ["pull", "--out", str(tmp_path / "c")]):
        assert call(*command, "bob/tries") == 1
        assert "cannot be reached" in said(capsys)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert call("push", str(run.path), "bob/tries") == 2
    assert "log in by `hf auth login`" in said(capsys)
    assert call("pull", "bob/tries", "--out", str(run.path)) == 2
    assert "is not empty" in said(capsys)


def test_what_is_no_whole_run_is_not_pulled(
    hub: Hub, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {name: (run.path / name).read_bytes() for name in RUN_FILES}
    hub.private["bob/run"] = False
    summary = json.loads(whole["summary.json"])
    broken = {
        "no run": {"README.md": b""},
        "line 1": {**whole, "trials.jsonl": b'{"question_id": "q1"}\n'},
        "no record": {**whole, "trials.jsonl": b'["q1"]\n{}\n'},
        "does not agree": {**whole, "summary.json": json.dumps({**summary, "solved": 2}).encode()},
        "(ci95)": {**whole, "summary.json": json.dumps({**summary, "ci95": "<b>"}).encode()},
        "other content": {
            **whole, "config.toml": b'method="a"\nmodel="b"\ntask="c"\nseed="d"\n'
        },
    }  # fmt: skip
    for sentence, files in broken.items():
        hub.datasets["bob/run"] = files
        assert call("pull", "bob/run", "--out", str(tmp_path / "out")) == 2, sentence
        assert sentence in said(capsys)
        assert not (tmp_path / "out").exists()
    hub.datasets["bob/run"] = {**whole, "../../escaped": b"x", "a/trials.jsonl": b"x"}
    assert call("pull", "bob/run", "--out", str(tmp_path / "out")) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(RUN_FILES)
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    option = b'[data.options]\nverifier = "command:rm x"\n'
    named = whole["config.toml"].replace(b"[data.options]\n", option)
    hub.datasets["bob/run"] = {**whole, "config.toml": named}
    assert call("pull", "bob/run", "--out", str(tmp_path / "out")) == 0
    assert "name code or commands (command:rm x)" in said(capsys)
