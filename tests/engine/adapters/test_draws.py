"""Rows that are drawn in threads: whose they are, how many there are, and who goes meanwhile."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fttt.engine import BatchedEngine, LoRASpec
from fttt.engine.adapters import lora
from fttt.engine.adapters.draws import RowDraws
from fttt.engine.adapters.lora import LoRABank, draw_first, target_layers
from fttt.errors import RunError
from fttt.testing import tiny_model

CPU = torch.device("cpu")
SPEC = LoRASpec(rank=2, targets=("all-linear",))


class Gate:
    """Holds up the draws of threads until it is opened, and no others, as of a model's check."""

    def __init__(self, draw: Callable[..., None]) -> None:
        self._draw = draw
        self._open = threading.Event()
        self.begun: list[int] = []
        """Seeds whose draws have begun in a thread."""

    def __call__(self, *arguments: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.begun.append(next(a for a in arguments if isinstance(a, int)))
            assert self._open.wait(60)
        self._draw(*arguments)

    def open(self) -> None:
        self._open.set()


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def write(seed: int, row_P: Tensor) -> None:
    row_P.fill_(seed)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Of the draws of all adapters, which are drawn in threads however small they are."""
    gate = Gate(draw_first)
    monkeypatch.setattr(lora, "DRAWN_AT_ONCE", 0)
    monkeypatch.setattr(lora, "draw_first", gate)
    return gate


def by_layers(bank: LoRABank, seed: int) -> list[Tensor]:
    """What PEFT's initialisation gives: one draw a layer."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty(2, layer.in_features).uniform_(
            -1 / math.sqrt(layer.in_features), 1 / math.sqrt(layer.in_features), generator=generator
        )
        for layer in target_layers(bank.model, bank.spec).values()
    ]


def test_numbers_are_those_of_one_draw_a_layer_in_threads_too(gate: Gate) -> None:
    loaded = tiny_model()
    widths = [layer.in_features for layer in target_layers(loaded.model, SPEC).values()]
    assert len(set(widths)) > 1

    async def main() -> None:
        bank = LoRABank(loaded.model, SPEC, 5, CPU)
        gate.open()
        slots = await asyncio.gather(*(bank.open(seed) for seed in range(5)))
        assert sorted(gate.begun) == [0, 1, 2, 3, 4]
        for seed, slot in enumerate(slots):
            found = bank.factors(slot.index)
            assert all(
                torch.equal(a, w) for (a, _), w in zip(found, by_layers(bank, seed), strict=True)
            )
            assert all(not b.any() for _, b in found)
        bank.fill(slots[0].index, 4)  # at once
        assert torch.equal(bank.weights_SP[slots[0].index], bank.weights_SP[slots[4].index])
        bank.detach()

    asyncio.run(main())


def test_few_rows_are_in_memory_and_each_holds_its_own_seed() -> None:
    async def main() -> None:
        draws = RowDraws(write, 1000, 3, CPU)
        drawings = [draws.ask(seed) for seed in range(20)]
        for seed, drawing in enumerate(drawings):
            row = await drawing.row()
            assert row.numbers.unique().tolist() == [seed]
            assert sum(other.future.done() for other in drawings[seed:]) <= 3
            target = torch.empty(1000)
            draws.upload(row, target)
            assert target.unique().tolist() == [seed]
        assert draws._made <= 3
        draws.close()

    asyncio.run(main())


def test_who_goes_while_a_row_is_drawn_leaves_it_to_the_next() -> None:
    gate = Gate(write)

    async def main() -> None:
        draws = RowDraws(gate, 10, 2, CPU)
        drawings = [draws.ask(seed) for seed in range(6)]
        await until(lambda: 0 in gate.begun)
        tasks = [asyncio.create_task(drawing.row()) for drawing in drawings]
        await asyncio.sleep(0)
        for task in tasks[:3]:  # one is drawn, one has memory at least, one waits for it
            task.cancel()
        gate.open()
        async with asyncio.timeout(60):
            for seed in (3, 4, 5):
                row = await tasks[seed]
                assert row.numbers.unique().tolist() == [seed]
                draws.give(row)
        await until(lambda: len(draws._free) == draws._made == 2)
        late = draws.ask(6)
        await until(late.future.done)
        late.drop()  # drawn, and never read
        assert len(draws._free) == 2
        draws.close()

    asyncio.run(main())


def test_a_cancelled_question_gives_its_place_back_while_it_is_drawn(gate: Gate) -> None:
    async def main() -> None:
        bank = LoRABank(tiny_model().model, SPEC, 1, CPU)
        gone, waiting = (asyncio.create_task(bank.open(seed)) for seed in (1, 2))
        await until(lambda: 1 in gate.begun)
        gone.cancel()
        gate.open()
        async with asyncio.timeout(60):
            slot = await waiting
        assert torch.equal(bank.factors(slot.index)[0][0], by_layers(bank, 2)[0])
        slot.close()
        assert list(bank._free) == [0]
        bank.detach()

    asyncio.run(main())


def test_an_engine_that_is_closed_while_it_draws_answers_all(gate: Gate) -> None:
    """Those that are drawn, and one that waits for a place, whose row may be there."""

    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=64, adapter=SPEC, adapters=2)
        tasks = [asyncio.create_task(engine.open_adapter(SPEC, n)) for n in range(4)]
        await until(lambda: 0 in gate.begun)
        await engine.close()
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, RunError) for answer in answers)
        assert all("engine was closed" in str(answer) for answer in answers)
        gate.open()

    asyncio.run(main())


def test_a_draw_that_fails_is_an_error_of_its_question() -> None:
    def fails(seed: int, row_P: Tensor) -> None:
        if seed == 1:
            raise ValueError("no such seed")
        write(seed, row_P)

    async def main() -> None:
        draws = RowDraws(fails, 10, 1, CPU)
        one, two = draws.ask(1), draws.ask(2)
        with pytest.raises(ValueError, match="no such seed"):
            await one.row()
        draws.give(await two.row())
        assert draws._made == len(draws._free) <= 2
        draws.close()

    asyncio.run(main())
