"""``fttt view`` beside a real run, which is killed and resumed while the page shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fttt.testing import save_tiny_model
from fttt.testing.browser import installed, open_browser

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fttt", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)


@pytest.mark.slow
def test_the_page_follows_a_run_that_is_killed_and_resumed(tmp_path: Path) -> None:
    if installed() is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    data, runs = tmp_path / "questions.jsonl", tmp_path / "runs"
    line = '{"question": "Question %d?", "answer": "123456789"}\n'
    data.write_text("".join(line % n for n in range(200)))
    model = save_tiny_model(tmp_path / "tiny")
    runs.mkdir()
    view = start("view", str(runs), "--no-open")
    run = start(
        *("run", "fttt", "--model", str(model), "--device", "cpu", "--batch-size", "2"),
        *("--task", "jsonl", "--data-dir", str(data), "--verifier", "number"),
        *("--trials", "16", "--max-new-tokens", "40", "--out", str(runs / "mine")),
    )
    facts = "document.getElementById('facts').textContent"
    trials = f"Number({facts}.match(/([\\d,]+) trials/)[1].replace(',', ''))"
    try:
        assert view.stdout is not None
        address = view.stdout.readline().split(" at ")[1].split()[0]
        with open_browser() as browser:
            browser.open(address)
            assert browser.holds("document.querySelectorAll('#rows .cell').length > 3")
            assert browser.holds(f"{facts}.startsWith('running')")
            assert browser.holds("document.documentElement.dataset.curves")
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=120)
            with (runs / "mine" / "trials.jsonl").open("ab") as file:
                file.write(b'{"question_id": "torn')
            assert browser.holds(f"{facts}.startsWith('stopped')")
            assert f"fttt run --resume {runs / 'mine'}" in browser.text("#resume")
            before = browser.run(f"return {trials}")
            run = start("run", "--resume", str(runs / "mine"))
            assert browser.holds(f"{trials} > {before}")
            assert browser.holds(f"{facts}.startsWith('running')")
            assert browser.run("return document.querySelectorAll('#curves svg').length") == 3
            assert browser.complaints() == []
    finally:
        for process in (run, view):
            process.kill()
            process.communicate(timeout=120)
