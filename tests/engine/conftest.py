"""One thread (the models are tiny, and other tests may run beside these), and what runs is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fttt.engine.batch import Batch
from fttt.engine.memory_plan import MemoryPlan, plan_memory


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


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets engines have pages of so many tokens, and so many of them, or all that rows may need."""

    def use(page: int | None, pages: int | None = None, rows: int = 0, **others: int) -> None:
        def plan(*args: Any, **settings: Any) -> MemoryPlan:
            made = plan_memory(*args, **settings)
            size, count = page or made.capacity, max(made.rows, rows)
            whole = count * -(-made.capacity // size)
            return replace(made, rows=count, page=size, pages=pages or whole, **others)

        monkeypatch.setattr("fttt.engine.engine.plan_memory", plan)

    return use
