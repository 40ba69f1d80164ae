"""A real server with the embedded model, and a run that is killed while it asks one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fttt.models import load_model
from fttt.store import Run
from fttt.testing import call
from fttt.testing.scripted_server import ScriptedServer, completion

Serve = Callable[[Callable[[dict[str, Any]], Any]], ScriptedServer]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def served(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """The embedded model's folder, and the address of ``transformers serve`` on it."""
    pytest.importorskip("openai", reason="asks servers: pip install 'fttt[endpoint]'")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "smollm2"
    loaded = load_model("smollm2-135m", dtype="bfloat16", device="cpu")
    loaded.model.generation_config.do_sample = True  # else it takes the likeliest token always
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    program = str(Path(sys.executable).with_name("transformers"))
    words = [program, "serve", str(folder), "--device", "cpu", "--dtype", "float32"]
    words += ["--host", "127.0.0.1", "--port", str(free_port)]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 240
        while not _healthy(free_port):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{free_port}/v1"
    finally:
        process.kill()
        process.wait(timeout=60)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_real_server_answers_as_the_weights_do(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    common = ["--limit", "2", "--max-new-tokens", "16", "--no-save-correct-cases"]
    there = ["--model", f"openai:{folder}", "--endpoint", url, *common]
    here = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", *common]
    for name, flags in (("there", there), ("here", here)):
        assert call("run", "greedy", *flags, "--out", str(tmp_path / name)) == 0
    asked, own = Run.open(tmp_path / "there").trials, Run.open(tmp_path / "here").trials
    assert [trial.completion for trial in asked] == [trial.completion for trial in own]
    assert [t.usage.prompt_tokens for t in asked] == [t.usage.prompt_tokens for t in own]
    assert [t.finish_reason for t in asked] == [t.finish_reason for t in own]
    sampled = ["--trials", "2", "--temperature", "1.2", "--limit", "1", "--max-new-tokens", "16"]
    for method in ("self-consistency", "revision"):
        out = tmp_path / method
        assert call("run", method, *there, *sampled, "--out", str(out)) == 0
        run = Run.open(out)
        assert len({trial.completion for trial in run.trials}) == 2
        assert run.summary["usage"]["generations"] == 2
        assert all(trial.usage.generated_tokens for trial in run.trials)


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_had_and_asks_for_the_rest(
    serve: Serve, tmp_path: Path, stop_run: Callable[..., tuple[int, str]]
) -> None:
    def script(body: dict[str, Any]) -> dict[str, Any]:
        said = len(json.dumps(body["messages"]))
        return completion(f"The answer is {-said - body['seed'] % 97}.")

    def flags(out: Path) -> list[str]:
        return [
            *("run", "revision", "--model", "openai:tiny", "--endpoint", server.url),
            *("--limit", "3", "--trials", "6", "--concurrency", "2", "--out", str(out)),
        ]

    def facts(out: Path) -> list[tuple[str, int, str]]:
        return [(t.question_id, t.trial, t.completion) for t in Run.open(out).trials]

    server = serve(script)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert call(*flags(whole)) == 0
    assert len(server.asked) == 18
    code, errors = stop_run(flags(torn), 12)
    assert code == -signal.SIGKILL, errors
    histories = Run.open(torn).histories.values()
    kept = sum(len(history.generations) for history in histories)
    assert 0 < kept < 18
    before, asked = facts(torn), len(server.asked)
    assert call("run", "--resume", str(torn)) == 0
    assert set(before) < set(facts(torn))
    assert facts(torn) == facts(whole)  # this server keeps the promise of a seed
    assert len(server.asked) - asked == 18 - kept
