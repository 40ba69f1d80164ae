"""One thread (the models are tiny, and other tests may run beside these), and what runs is seen."""

from __future__ import annotations

from typing import Any

import pytest

from fttt.engine.batch import Batch


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each segment that is prefilled."""
    seen: list[int] = []
    pack = Batch.pack

    def counted(mode: Any, segments: Any, cache: Any) -> Batch:
        if mode == "prefill":
            seen.extend(len(segment.token_ids) for segment in segments)
        return pack(mode, segments, cache)

    monkeypatch.setattr(Batch, "pack", counted)
    return seen
