"""A page in a real browser: headless Chromium, driven through chromedriver."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Browser", "installed", "open_browser"]

_SECONDS = 240.0
"""For anything that is waited for: a busy machine draws the plots of a page in a minute."""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1300,900", "--hide-scrollbars"),
]


class Browser:
    """The few commands of the WebDriver protocol that a test of a page needs."""

    def __init__(self, client: httpx.Client, binary: str, profile: Path) -> None:
        """Start a browser; ``client`` speaks to chromedriver."""
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 1100 * _SECONDS, "pageLoad": 1100 * _SECONDS},
        }
        self._client = client
        self._session = ""
        self._blank = True
        made = self._send("", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{made['sessionId']}"

    def open(self, page: Path | str, place: str = "") -> None:
        """Load a file or an address and wait until its first question is shown."""
        if not self._blank:  # another place of the same page would not load it again
            self._send("/url", {"url": "about:blank"})
        self._blank = False
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._send("/url", {"url": address + place})
        self.run("await_(() => document.documentElement.dataset.ready)")

    def run(self, script: str) -> Any:
        """What a script returns; ``await_(f)`` in it waits until ``f`` holds, or for minutes."""
        lines = (
            "const done = arguments[0];"
            "const await_ = async (f) => {"
            f" const end = performance.now() + {1000 * _SECONDS};"
            " while (!f() && performance.now() < end)"
            "  await new Promise((r) => setTimeout(r, 10));"
            "};"
            f"(async () => {{ {script.replace('await_(', 'await await_(')} }})()"
            ".then(done, (error) => done('failed: ' + error));"
        )
        return self._send("/execute/async", {"script": lines, "args": []})

    def holds(self, condition: str) -> bool:
        """Whether a condition comes to hold, for which it waits as ``await_`` in :meth:`run`."""
        return bool(self.run(f"await_(() => {condition}); return Boolean({condition})"))

    def text(self, selector: str) -> str:
        """The visible text of an element, a sign in the place of each lone surrogate."""
        script = f"return document.querySelector('{selector}').innerText.toWellFormed()"
        return str(self.run(script))

    def prefer(self, scheme: str) -> None:
        """Make the system's theme light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._send(
            "/goog/cdp/execute",
            {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}},
        )

    def resize(self, width: int, height: int) -> None:
        """Make the page so many CSS pixels wide and high."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send(
            "/goog/cdp/execute",
            {"cmd": "Emulation.setDeviceMetricsOverride", "params": size},
        )

    def picture(self) -> bytes:
        """A screenshot as PNG."""
        found = self._client.get(f"/session{self._session}/screenshot").json()["value"]
        return base64.b64decode(found)

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self._send("/print", {"background": True}))

    def complaints(self) -> list[str]:
        """What the browser's console holds since it was last asked."""
        entries = self._send("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def close(self) -> None:
        """End the browser."""
        self._client.delete(f"/session{self._session}")

    def _send(self, command: str, body: dict[str, Any]) -> Any:
        answer = self._client.post(f"/session{self._session}{command}", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"the browser refused {command or 'to start'}: {answer.text}")
        return answer.json()["value"]


def installed() -> tuple[str, str] | None:
    """The paths of chromium and chromedriver; ``None`` where one of them is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A fresh browser with an empty profile.

    Raises:
        RuntimeError: chromium or chromedriver is missing, or does not start.
    """
    found = installed()
    if found is None:
        raise RuntimeError("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    chromium, driver = found
    words = [driver, "--port=0"]  # a free one, which it tells
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, _killed(server):
        assert server.stdout is not None
        told = (re.search(r"successfully on port (\d+)", line) for line in server.stdout)
        port = next((found[1] for found in told if found), None)
        if port is None:
            raise RuntimeError("chromedriver does not start")
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                timeout=1.2 * _SECONDS,
                trust_env=False,
            ) as client,
        ):
            browser = Browser(client, chromium, Path(profile))
            try:
                yield browser
            finally:
                browser.close()


@contextmanager
def _killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process with the block."""
    try:
        yield
    finally:
        process.kill()
