from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of the benchmarks: FTTT_DATASETS, or the one beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "datasets"
    folder = Path(os.environ.get("FTTT_DATASETS", beside))
    if not folder.is_dir():
        pytest.skip("no benchmark data: set FTTT_DATASETS to the folder that holds it")
    return folder
