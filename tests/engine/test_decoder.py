"""What a decode step knows of the tokens before it, and the graphs that serve lanes."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest
from fttt.engine.decoder import CUDADecoder, SeenTokens
from fttt.engine.lane import Lane
from fttt.testing import tiny_model

VOCAB, ROWS = 50, 6


@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_seen_tokens_are_those_of_each_sequence_whoever_comes_and_goes(
    seed: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU, and on a GPU, whose captured steps mark what they draw themselves."""
    rng = random.Random(seed)
    marked: list[int] = []
    mark = SeenTokens.mark
    monkeypatch.setattr(
        SeenTokens, "mark", lambda self, n, ids: marked.append(len(ids)) or mark(self, n, ids)
    )
    table_LV = torch.zeros(ROWS, VOCAB, dtype=torch.bool)
    seen, running, every, cut = SeenTokens(table_LV), list[Lane](), list[Lane](), 0

    def begin() -> Lane:
        prompt = tuple(rng.choices(range(VOCAB), k=5))
        penalty = rng.choice([1.0, 1.3, 2.0])
        lane = Lane(0, -1, 0.0, 1.0, 0, 5, logprobs=False, penalty=penalty, prompt=prompt)
        lane.take([rng.randrange(VOCAB)], [0.0])
        every.append(lane)
        return lane

    for step in range(200):
        running = [lane for lane in running if rng.random() > 0.05]
        while len(running) < ROWS and rng.random() < 0.5:
            running.insert(rng.randrange(len(running) + 1), begin())
        seen.note(running, ahead)
        for n, lane in enumerate(running):
            if lane.penalty != 1:
                held = {*lane.prompt, *lane.tokens}
                assert set(table_LV[n].nonzero()[:, 0].tolist()) == held
        for n, lane in enumerate(running):
            drawn = [rng.randrange(VOCAB) for _ in range(ahead or 1)]
            lane.take(drawn, [0.0] * len(drawn))
            if ahead:
                table_LV[n, drawn] = True
            if rng.random() < 0.02:
                cut += len(lane.tokens) + 5
                lane.cut(len(lane.tokens) - 1)
        if step == 100:
            table_LV.fill_(True)
            seen.forget()
            cut += sum(len(lane.tokens) + 5 for lane in running)
    assert sum(marked) <= sum(len(lane.tokens) + 5 for lane in every) + cut


def test_few_graphs_serve_lanes_that_come_and_go(
    gpu_like: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fits is captured where it has been wanted often; what is drawn is the same."""
    if not issubclass(gpu_like, CUDADecoder):
        pytest.skip("this stand-in has no graphs")
    graphs: list[int] = []

    def tokens(wanted: int) -> list[tuple[int, ...]]:
        """Of sequences of 1 to 20 tokens, and then of one of 100, with so many calls' patience."""
        monkeypatch.setattr("fttt.engine.decoder.WANTED", wanted)

        async def main() -> list[tuple[int, ...]]:
            engine = BatchedEngine(tiny_model(), max_length=120, batch_size=33, concurrency=33)
            decoder = gpu_like(engine._model, engine._cache, engine._bank)
            engine._decoder = decoder
            try:
                asked = [1 + n * 19 // 32 for n in range(33)], [100, 100, 100]
                found = []
                for lengths in asked:
                    found += await asyncio.gather(
                        *(
                            engine.generate(GenerateRequest((5, 6, 7), n, 0.9, 1.0, 31 * n + at))
                            for at, n in enumerate(lengths)
                        )
                    )
                graphs[:] = [kind.lanes for kind in decoder._graphs]
                return [one.token_ids for one in found]
            finally:
                await engine.close()

        return asyncio.run(main())

    at_once, every = tokens(-1), sorted(graphs)
    patient, few = tokens(8), sorted(graphs)
    assert patient == at_once
    assert {4, 8, 16, 24, 32} <= {*every}
    assert len(few) < len(every) - 1
    assert 4 in few  # of the three that run on alone
