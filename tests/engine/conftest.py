"""One thread: the models are tiny, and other tests may run beside these."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""
