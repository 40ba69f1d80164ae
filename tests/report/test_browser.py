"""The page in a real browser: headless Chromium, driven through chromedriver."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from matplotlib.image import imread

from fttt.report.page import build_page, gather
from fttt.store import Run
from fttt.testing.browser import Browser, installed, open_browser

MakeRun = Callable[..., Run]
HOSTILE = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if installed() is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    with open_browser() as opened:
        yield opened


def corner(browser: Browser) -> float:
    """How bright the upper left corner is, 0 to 1."""
    return float(imread(io.BytesIO(browser.picture()))[2, 2, :3].mean())


@pytest.fixture(scope="module")
def page(make_run_once: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on forty questions; the first question's completions try to break out."""
    verdicts = {f"q{n}": "iiuc" if n % 4 == 0 else "iiii" for n in range(40)}
    others = {f"q{n}": "c" if n % 5 == 0 else "iiii" for n in range(40)}
    runs = [
        make_run_once(
            "a",
            verdicts,
            method="fttt",
            completion=HOSTILE,
            critique=f"Look again. {HOSTILE}",
            settings={"feedback": "Wrong."},
        ),
        make_run_once("b", others, completion="a plain answer"),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(build_page(gather(runs)), encoding="utf-8")
    return path


def test_the_first_question_is_shown_and_what_a_model_wrote_stays_text(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    shown = browser.text("#detail")
    assert "Trial 1: incorrect" in shown
    assert "loss 2.000" in shown
    assert "Trial 4: correct" in shown
    assert HOSTILE in shown
    assert f"Look again. {HOSTILE}" in shown
    assert "Told and trained on: “Wrong.”" in shown
    assert "arithmetic" in str(browser.run("return document.title"))
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


def test_only_the_rows_in_sight_exist(browser: Browser, page: Path) -> None:
    browser.open(page)
    script = "return [...document.querySelectorAll('.row .id')].map((e) => e.textContent)"
    first = browser.run(script)
    assert first[0] == "q0"
    assert len(first) < 30
    browser.run("document.getElementById('list').scrollTop = 1e6")
    browser.run("await_(() => document.querySelector('.row:last-child .id').textContent === 'q39')")
    assert "q0" not in browser.run(script)


@pytest.mark.parametrize(
    ("place", "tally"),
    [
        ("#show=solved", "10 of 40"),
        ("#show=unsolved", "30 of 40"),
        ("#show=late", "10 of 40"),
        ("#show=unanswered", "10 of 40"),
        ("#show=only&against=1", "8 of 40"),
        ("#show=lost&against=1", "6 of 40"),
        ("#run=1&show=late", "0 of 40"),
        ("#find=q3", "11 of 40"),
        ("#run=99&q=-7&show=nonsense&order=x", "40 of 40"),
    ],
)
def test_an_address_keeps_run_and_filters(
    browser: Browser, page: Path, place: str, tally: str
) -> None:
    browser.open(page, place)
    assert browser.text("#tally").startswith(tally)


def test_a_click_opens_a_question_beside_the_other_run(browser: Browser, page: Path) -> None:
    browser.open(page, "#against=1&order=trials")
    browser.run("document.querySelectorAll('.row')[1].click()")
    browser.run("await_(() => document.querySelector('#detail h4').textContent === 'q4')")
    shown = browser.text("#detail")
    assert "fttt, seed 42" in shown
    assert "best-of-n, seed 42" in shown
    assert "a plain answer" in shown
    assert "q=4" in str(browser.run("return location.hash"))


def test_enter_looks_into_completions(browser: Browser, page: Path) -> None:
    browser.open(page, "#run=1")
    browser.run(
        "const find = document.getElementById('find'); find.value = 'PLAIN answer';"
        "find.dispatchEvent(new Event('input'));"
        "find.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));"
        "await_(() => document.getElementById('tally').textContent.startsWith('40'))"
    )
    assert browser.text("#tally").startswith("40 of 40")


def test_arrow_keys_move_through_the_list(browser: Browser, page: Path) -> None:
    browser.open(page)
    press = (
        "document.getElementById('list').dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}));"
    )
    browser.run(press % "ArrowDown")
    browser.run("await_(() => document.querySelector('#detail h4').textContent === 'q1')")
    assert browser.text("#detail h4") == "q1"


def test_the_theme_follows_the_system_and_the_button(browser: Browser, page: Path) -> None:
    browser.prefer("light")
    browser.open(page)
    assert corner(browser) == 1
    browser.prefer("dark")
    assert corner(browser) < 0.15
    browser.run("document.getElementById('theme').click()")  # light
    assert corner(browser) == 1
    browser.prefer("light")
    browser.run("document.getElementById('theme').click()")  # dark
    assert corner(browser) < 0.15


def test_a_phone_shows_what_was_solved_without_scrolling_sideways(
    browser: Browser, make_run_once: MakeRun, tmp_path: Path
) -> None:
    verdicts = {f"q{n}": "iiii" for n in range(6)}
    settings = ({"critique_tokens": 256, "reflection": False}, {"critique_tokens": 48})
    runs = [
        make_run_once(f"side{n}", verdicts, method="fttt", settings=own)
        for n, own in enumerate(settings)
    ]
    path = tmp_path / "report.html"
    path.write_text(build_page(gather(runs)), encoding="utf-8")
    browser.resize(390, 844)
    browser.open(path)
    right = "return document.querySelector('tbody td:nth-child(%d)').getBoundingClientRect().right"
    solved, interval = browser.run(right % 2), browser.run(right % 3)
    width = browser.run("return document.documentElement.scrollWidth")
    edges = browser.run(
        "return [...document.querySelectorAll('.stack, .stack td, .legend span, figure svg')]"
        ".map((e) => e.getBoundingClientRect()).filter((r) => r.width)"
        ".map((r) => [r.left, r.right])"
    )
    bars = browser.run(
        "return [...document.querySelectorAll('.figures.two svg')]"
        ".filter((e) => e.getBoundingClientRect().width).map((e) => e.getAttribute('class'))"
    )
    browser.resize(1300, 900)
    assert solved < interval <= 390
    assert width == 390
    assert len(edges) > 40
    assert all(0 <= left <= right <= 390 for left, right in edges)  # nothing is cut off
    assert bars == ["narrow", "narrow"]


def test_a_dark_page_prints_on_white(browser: Browser, page: Path, tmp_path: Path) -> None:
    if shutil.which("pdftoppm") is None:
        pytest.skip("needs pdftoppm (Debian: poppler-utils)")
    browser.prefer("dark")
    browser.open(page)
    (tmp_path / "page.pdf").write_bytes(browser.printed())
    browser.prefer("light")
    command = ["pdftoppm", "-r", "20", "-f", "1", "-l", "1", "-png", "page.pdf", "page"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (picture,) = tmp_path.glob("page-*.png")
    pixels = imread(picture)[..., :3].mean(axis=-1)
    assert pixels[2, 2] == 1
    assert 0 < (pixels < 0.9).mean() < 0.3  # ink on white
