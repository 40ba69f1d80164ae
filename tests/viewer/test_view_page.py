"""The live page in a real browser, over runs that grow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fttt.testing.browser import Browser, installed, open_browser

Grow = Callable[..., Any]
CELLS = "document.querySelectorAll('#rows .cell').length"


def shows(browser: Browser, selector: str, text: str) -> bool:
    """Whether an element comes to show a text: what the service tells arrives in parts."""
    shown = f"document.querySelector({json.dumps(selector)})?.innerText"
    return browser.holds(f"{shown}.includes({json.dumps(text)})")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if installed() is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    with open_browser() as opened:
        yield opened


class Service:
    """``fttt view`` as a process."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "fttt", "view", str(folder), "--no-open"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.address = self.said.split(" at ")[1].split()[0]

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=120)


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Service]]:
    services: list[Service] = []

    def start(folder: Path) -> Service:
        services.append(Service(folder))
        return services[-1]

    yield start
    for service in services:
        service.end()


def test_the_page_grows_with_the_runs(
    browser: Browser, grow: Grow, serve: Callable[[Path], Service], tmp_path: Path
) -> None:
    other = grow("other", seed=2)
    other.finish()
    mine = grow("mine")
    mine.trials("q/0", "iu")
    service = serve(tmp_path / "runs")
    assert "2 runs of" in service.said
    browser.open(service.address)  # shows the run that works
    assert "hostile" not in browser.text("#title")
    assert shows(browser, "#title", "fttt · toy · tiny")
    assert shows(browser, "#facts", "running · 0 of 3 questions done")
    assert browser.holds("document.querySelectorAll('#detail .trial').length === 2")
    shown = browser.text("#detail")
    for text in (
        "What is q/0? </script><script>document.title='pwned'</script><img src=x onerror=",
        "Trial 1: incorrect",
        "7 trained",
        "loss 0.2500",
        "divergence 0.5",
        "Told and trained on: “No: hint 0 </script><script>",
        "Trial 2: unanswered",
    ):
        assert text in shown
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert "pwned" not in str(browser.run("return document.title"))

    # trials end: the wall, the open question, the list and the curves follow; what is open stays
    browser.run("await_(() => document.documentElement.dataset.curves)")
    browser.run("document.querySelector('#detail details').open = true")
    stamp = browser.run("return document.documentElement.dataset.curves")
    mine.trials("q/0", "c")
    mine.trials("q/2", "ii")
    assert browser.holds(f"{CELLS} === 5")
    assert browser.holds("document.querySelectorAll('#detail .trial').length === 3")
    assert shows(browser, "#detail", "Trial 3: correct")
    assert browser.run("return document.querySelector('#detail details').open") is True
    assert shows(browser, "#facts", "1 of 3 questions done · 1 solved · 5 trials")
    browser.run(f"await_(() => document.documentElement.dataset.curves !== {stamp!r})")
    assert shows(browser, "#said", "Over the 2 of 3 questions that have begun.")

    # another run beside it
    browser.run(
        "const against = document.getElementById('against');"
        "against.selectedIndex = [...against.options].findIndex((o) => o.text === 'other');"
        "against.dispatchEvent(new Event('change'));"
    )
    assert browser.holds("document.querySelectorAll('#legend .mark').length === 2")
    assert shows(browser, "#legend", "fttt, seed 2")
    assert browser.holds("document.querySelectorAll('.strip.there').length === 3")

    # it ends, and the page says so; then the service does
    mine.finish()
    assert shows(browser, "#facts", "finished · 3 of 3 questions done · 1 solved (33.3 %)")
    assert [one for one in browser.complaints() if service.address in one] == []
    service.end()
    assert shows(browser, "#lost", "fttt view has ended")


def test_an_address_opens_run_and_question_also_on_a_phone(
    browser: Browser, grow: Grow, serve: Callable[[Path], Service], tmp_path: Path
) -> None:
    for n in range(10):
        grow(f"run-{n}", *(f"gsm8k/{q}" for q in range(200)), seed=n).writer.close()
    service = serve(tmp_path / "runs")
    browser.resize(390, 844)
    browser.open(service.address)
    browser.run(
        "document.getElementById('sift').value = 'run-3';"
        "document.getElementById('sift').dispatchEvent(new Event('input'));"
        "document.querySelector('#list-of-runs button').click();"
        "await_(() => document.querySelectorAll('#rows .row').length);"
        "document.querySelectorAll('#rows .row')[4].click();"
        "await_(() => document.querySelector('#detail h4')?.textContent === 'gsm8k/4')"
    )
    assert browser.holds("document.querySelectorAll('#list-of-runs tr').length === 1")
    assert shows(browser, "#count", "1 of 10")
    assert shows(browser, "#resume", "--resume")
    tiles = browser.run("return document.querySelectorAll('#rows .row').length")
    assert tiles < 100  # only what is in sight exists
    assert browser.run("return document.documentElement.scrollWidth") == 390
    place = str(browser.run("return location.hash"))
    browser.open(service.address, place)
    browser.run("await_(() => document.querySelector('#detail h4')?.textContent === 'gsm8k/4')")
    assert browser.text("#detail h4") == "gsm8k/4"
    browser.resize(1300, 900)
    assert [one for one in browser.complaints() if service.address in one] == []


def test_a_folder_without_runs_waits_for_one(
    browser: Browser, grow: Grow, serve: Callable[[Path], Service], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    service = serve(tmp_path / "runs")
    browser.open(service.address)
    assert shows(browser, "#runs", "There is no run in this folder yet")
    grow("mine").trials("q/0", "i")
    assert browser.holds(f"{CELLS} === 1")
    assert shows(browser, "#head", "1 run · 1 running")
