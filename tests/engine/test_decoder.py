"""What a decode step knows of the tokens before it."""

from __future__ import annotations

import random

import pytest
import torch

from fttt.engine.decoder import Lane, SeenTokens

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
