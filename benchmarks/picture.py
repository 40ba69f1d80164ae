"""The picture of the README: the live page over a run, with another beside it.

    fttt demo --out outputs/demo
    python benchmarks/picture.py outputs/demo --run policy --beside best-of-n [--out docs/live.png]

Starts `fttt view` as a process, opens it in headless Chromium, chooses the runs by the beginnings
of their folders' names and a question that took several trials, and writes what is seen as PNG.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fttt.testing.browser import Browser, open_browser

SIZE = (1160, 850)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", default="policy")
    parser.add_argument("--beside", default="best-of-n")
    parser.add_argument("--out", type=Path, default=Path("docs/live.png"))
    options = parser.parse_args()
    words = [sys.executable, "-m", "fttt", "view", str(options.folder), "--no-open"]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    address = service.stdout.readline().split(" at ")[1].split()[0]
    try:
        with open_browser() as browser:
            browser.prefer("light")
            browser.resize(*SIZE)
            browser.open(address)
            choose(browser, options.run, options.beside)
            picture = browser.picture()
    finally:
        service.terminate()
        service.communicate()
    # a palette of 128 colours shows text and lines as well, in a third of the bytes
    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(128)
    small.save(options.out, optimize=True)
    print(f"wrote {options.out}: {options.out.stat().st_size / 1000:.0f} kB")


def choose(browser: Browser, run: str, beside: str) -> None:
    """Show a run with another beside it, and one of its questions that took several trials."""
    rows = "[...live.rows.values()]"
    browser.run(f"await_(() => {rows}.length >= 2)")
    keys = f"['{run}', '{beside}'].map((n) => {rows}.find((row) => row.name.startsWith(n)).key)"
    browser.run(f"pick(...{keys})")
    browser.run("await_(() => state.runs.length === 2)")
    tried = "state.runs[0].verdicts.findIndex((trials) => trials.length === 3)"
    browser.run(f"show(Math.max(0, {tried}))")
    browser.run("await_(() => document.querySelector('#curves svg'))")
    browser.run("await new Promise((done) => setTimeout(done, 2500))")  # until all is drawn
    browser.run("document.querySelector('#run-shown h3').scrollIntoView()")


if __name__ == "__main__":
    main()
