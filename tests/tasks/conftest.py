from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Hub = dict[tuple[str, "str | None", str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of the benchmarks: FTTT_DATASETS, or the one beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "datasets"
    folder = Path(os.environ.get("FTTT_DATASETS", beside))
    if not folder.is_dir():
        pytest.skip("no benchmark data: set FTTT_DATASETS to the folder that holds it")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that holds what a test puts into it, by name, configuration and split."""
    held: Hub = {}

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        try:
            return held[name, config, split]
        except KeyError:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub (offline)\nmore") from None

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return held
