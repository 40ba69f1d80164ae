"""Pages: who owns them, and that nobody's tokens depend on how long they are or how many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    BeamRequest,
    GenerateRequest,
    Lesson,
    LoRASpec,
    ScoreRequest,
    Target,
    TrainRequest,
)
from fttt.engine.batch import Batch, Mode, Segment
from fttt.engine.cache import Heads, KeptRow, KVCache
from fttt.engine.patience import Patience
from fttt.engine.prompts import Prompt
from fttt.engine.request import ThoughtBudget
from fttt.models import LoadedModel, Prefix
from fttt.testing import tiny_model

Paged = Callable[..., None]
SPEC = LoRASpec(  # with an eps that is large, since where a gradient is noise, so is the step
    lr=1e-2, dropout=0.0, eps=1e-2, targets=("o_proj",)
)
TURN = (7, 8, 9)


STEPS = (
    "take", "fork", "extend", "keep", "continue", "claim", "release", "give", "rewrite", "note",
    "begin", "begin", "end", "end",
)  # fmt: skip


class Rows:
    """A cache of one number a token, and what each of its rows should hold."""

    def __init__(self, page: int, pages: int, prefix: int, random: Random) -> None:
        own = torch.arange(1.0, prefix + 1).view(1, prefix, 1)
        self.cache = KVCache(
            rows=6, capacity=24, heads={0: Heads(1, 1, 1, 0)}, dtype=torch.float32,
            device=torch.device("cpu"), page=page, pages=pages,
            prefix=Prefix((own,), (own,)) if prefix else None,
        )  # fmt: skip
        self.prefix, self.random = list(own.flatten().tolist()), random
        self.running: dict[int, list[float]] = {}
        self.kept: dict[KeptRow, list[float]] = {}
        self.prompts: dict[int, Prompt] = {}
        """Of rows that were said to hold one; its tokens are the numbers in the row."""
        self.begun = 0
        self.next = 100.0

    def write(self, row: int, count: int, first: float | None = None) -> None:
        """Continue a sequence by tokens of its own, or by one that is given and others."""
        self.cache.sync()
        for n in range(count):
            at = len(self.prefix) + len(self.running[row])
            page = self.cache.table_RP[row, at // self.cache.page]
            token = self.next if n or first is None else first
            self.cache.keys[0][page, :, at % self.cache.page] = token
            self.running[row].append(token)
            self.next += 1

    def step(self) -> None:
        """Do one thing, if it can be done."""
        cache, random = self.cache, self.random
        room = 24 - len(self.prefix)
        what = random.choice(STEPS)
        row = random.choice([*self.running, None])
        kept = random.choice([*self.kept, None])
        if what == "take":
            tokens = random.randint(1, room)
            made = cache.take(tokens)
            if made is not None:
                self.running[made] = []
                self.write(made, random.randint(1, tokens))
        elif what == "fork" and row is not None:
            held = random.randint(0, len(self.running[row]))
            made = cache.fork(row, held, held)
            if made is not None:
                cache.copy([(row, made, held)])
                self.running[made] = self.running[row][:held]
        elif what == "extend" and row is not None:
            more = random.randint(0, room - len(self.running[row]))
            if cache.extend(row, len(self.running[row]) + more):
                self.write(row, more)
        elif what == "keep" and row is not None and self.running[row]:
            tokens = self.running.pop(row)
            ids = tuple(range(len(tokens) + 1))
            self.kept[cache.keep(row, ids, adapted=False, awaited=random.random() < 0.5)] = tokens
        elif what == "continue" and kept is not None and kept.row is not None:
            held = random.randint(0, len(self.kept[kept]))
            if cache.free and cache.free_pages >= cache.count(held + 1):
                made = cache.fork(kept.row, held, held + 1)
                assert made is not None
                cache.copy([(kept.row, made, held)])
                self.running[made] = self.kept[kept][:held]
        elif what == "claim" and kept is not None and kept.row is not None:
            tokens, made = self.kept.pop(kept), cache.claim(kept)
            assert made is not None
            self.rewrite(made, tokens)
        elif what == "rewrite" and row is not None:
            cache.prompts.forget(row)
            self.rewrite(row, self.running[row])
        elif what == "release" and kept is not None:
            random.choice([kept.close, lambda: setattr(kept, "awaited", False)])()
        elif what == "give" and row is not None:
            cache.give(row)
            del self.running[row]
        elif what in {"note", "begin", "end"}:
            self.hold(what, row)

    def hold(self, what: str, row: int | None) -> None:
        """Say what prompt a row holds, begin behind one, or end a sequence but for its prompt."""
        cache, random = self.cache, self.random
        if what == "note" and row is not None and self.running[row]:
            if cache.prompts._prompt_of.get(row) is None:
                count = random.randint(1, len(self.running[row]))
                cache.prompts.note(row, Prompt(-1, 0, _ids(self.running[row][:count])))
        elif what == "begin" and cache.prompts._rows_of:
            prompt = random.choice([*cache.prompts._rows_of])
            held = len(prompt.token_ids) - 1
            tokens = held + random.randint(1, 24 - len(self.prefix) - held)
            needed, (rows, free) = cache.prompts.pages_for(prompt, tokens), cache.room(awaited=True)
            made = cache.prompts.begin(prompt, tokens)
            assert needed is not None
            assert (made is not None) == (rows > 0 and needed <= free)
            if made is not None:
                self.begun += 1
                self.running[made] = [float(x) for x in prompt.token_ids[:held]]
                self.write(made, tokens - held, float(prompt.token_ids[-1]))
        elif what == "end" and row is not None:
            cache.prompts.release(row)
            del self.running[row]

    def rewrite(self, row: int, tokens: list[float]) -> None:
        """Continue a sequence from an earlier token on, or give it up."""
        held = self.random.randint(0, len(tokens))
        self.running[row] = tokens[:held]
        if self.cache.cut(row, held) and self.cache.extend(row, held + 1):
            self.write(row, 1)
        else:
            self.cache.give(row)
            del self.running[row]

    def check(self) -> None:
        """Each row holds its tokens, and each page is free or somebody's."""
        cache = self.cache
        self.kept = {kept: tokens for kept, tokens in self.kept.items() if kept.row is not None}
        cache.sync()
        rows = {kept.row: tokens for kept, tokens in self.kept.items()} | self.running
        owners: Counter[int] = Counter()
        for row, prompt in cache.prompts._prompt_of.items():  # those of no sequence as well
            page_BP = cache.table_RP[row : row + 1].long()
            held = cache.read(cache.keys[0], page_BP, len(self.prefix) + len(prompt.token_ids))
            assert _ids(held.flatten().tolist()[len(self.prefix) :]) == prompt.token_ids
            assert (row in rows) != (row in cache.prompts._idle)
        for row, tokens in rows.items():
            assert row is not None
            owners.update(cache.pages_of(row))
            page_BP = cache.table_RP[row : row + 1].long()
            held = cache.read(cache.keys[0], page_BP, len(self.prefix) + len(tokens))
            assert held.flatten().tolist() == self.prefix + tokens
            assert page_BP[0, : len(cache.pages_of(row))].tolist() == list(cache.pages_of(row))
        fixed = set(cache.pages_of(cache.rows))
        assert cache.free == cache.rows - len(rows)
        assert (cache.kept, cache.spare) == (
            len(self.kept), sum(not kept.awaited for kept in self.kept),
        )  # fmt: skip
        pages = cache._spare_page - len(fixed)
        assert cache.free_pages == pages - len(set(owners) - fixed)
        for awaited in (False, True):
            stay = [r for k, r in ((k, k.row) for k in self.kept) if k.awaited and not awaited]
            used = {p for r in [*self.running, *stay] if r is not None for p in cache.pages_of(r)}
            assert cache.room(awaited=awaited) == (
                cache.rows - len(self.running) - len(stay), pages - len(used - fixed),
            )  # fmt: skip


def _ids(tokens: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, tokens))


@pytest.mark.parametrize("prefix", [0, 3, 8])
@pytest.mark.parametrize(("page", "pages"), [(4, 14), (8, 7), (24, 4), (1, 60)])
def test_no_page_is_lost_or_written_by_two(page: int, pages: int, prefix: int) -> None:
    begun = 0
    for seed in range(8):
        rows = Rows(page, pages, prefix, Random(seed))
        for n in range(100):
            rows.step()
            if seed % 2 or n % 4 == 3:  # copies of copies wait for one another
                rows.check()
        rows.check()
        for row in [*rows.running]:
            rows.cache.give(row)
        for kept in rows.kept:
            kept.close()
        while rows.cache.prompts.idle:
            rows.cache.prompts.evict()
        assert not rows.cache.prompts._rows_of
        begun += rows.begun
        assert rows.cache._pages.vacant == pages
        assert (rows.cache.free, rows.cache.free_pages) == (6, pages)
    assert begun > 8


def test_a_copy_of_a_copy_holds_what_the_first_sequence_wrote() -> None:
    rows = Rows(4, 14, 0, Random(0))
    cache, last = rows.cache, rows.cache.take(3)
    assert last is not None
    rows.running[last] = []
    rows.write(last, 3)
    for _ in range(2):  # nothing is copied before the next pass
        made = cache.fork(last, 3, 4)
        assert made is not None
        cache.copy([(last, made, 3)])
        rows.running[made] = list(rows.running[last])
        last = made
    rows.check()


def everything(loaded: LoadedModel, decoder: type[Any] | None = None) -> list[Any]:
    """What an engine answers to samples of one prompt, conversations, searches and lessons."""
    learns = loaded.prefix is None
    text = tuple(range(20, 33))

    async def talk(engine: BatchedEngine, n: int) -> list[Any]:
        prompt, held, said = text[: 6 + n], None, []
        for turn in range(3):
            request = GenerateRequest(
                prompt, 5 + (n + turn) % 4, 0.8, 0.9, 31 * n + turn, (2,), keep=True, reuse=held
            )
            one, other = await asyncio.gather(
                engine.generate(request), engine.generate(replace(request, noise_key=n, keep=False))
            )
            if held is not None:
                held.close()
            said += [one.token_ids, other.token_ids]
            prompt, held = prompt + one.token_ids + TURN, one.kept
        assert held is not None
        held.close()
        return said

    async def learn(engine: BatchedEngine, n: int) -> list[Any]:
        slot = await engine.open_adapter(SPEC, seed=n)
        seen: list[Any] = []
        for trial in range(3):
            answer = await engine.generate(
                GenerateRequest(text[: 5 + n], 9 + n, 0.9, 1.0, 7 * n + trial, (), slot, keep=True)
            )
            assert answer.kept is not None
            lesson = Lesson(answer.kept, (Target(TURN, (0.5, 0.0, 0.5)),))
            seen += [answer.token_ids, (await engine.train(TrainRequest(slot, (lesson,)))).loss]
            answer.kept.close()
        slot.close()
        return seen

    async def score(engine: BatchedEngine) -> list[float]:
        answer = await engine.generate(GenerateRequest(text, 6, 0.7, keep=True))
        assert answer.kept is not None
        scored = await engine.score(ScoreRequest(answer.kept, TURN))
        answer.kept.close()
        return list(scored.logprobs)

    async def main() -> list[Any]:
        engine = BatchedEngine(
            loaded, max_length=64, concurrency=12, beams=3 if learns else 0, batch_size=8,
            adapter=SPEC if learns else None,
        )  # fmt: skip
        if decoder is not None:
            engine._decoder = decoder(engine._model, engine._cache, engine._bank)
        try:
            samples = [GenerateRequest(text, 20, 0.9, 0.95, key, (2,)) for key in range(5)]
            asked: list[Any] = [*map(engine.generate, samples)]
            asked += [talk(engine, n) for n in range(3)]
            if learns:
                asked += [learn(engine, n) for n in range(3)]
                asked += [engine.beam(BeamRequest(text[:n], 3, 9, (2, 60))) for n in (5, 9)]
            asked.append(score(engine))
            found = await asyncio.gather(*asked)
            cache = engine._cache
            assert (cache.free, cache.free_pages) == (engine.plan.rows, engine.plan.pages)
            assert getattr(engine._decoder, "followed", 1) > 0 or engine._decoder.ahead == 1
            return [_plain(one) for one in found]
        finally:
            await engine.close()

    return asyncio.run(main())


def _plain(one: Any) -> Any:
    """The tokens of an answer or of beams."""
    if isinstance(one, tuple):
        return [beam.token_ids for beam in one]
    return getattr(one, "token_ids", one)


def same(found: list[Any], expected: list[Any]) -> None:
    """The same tokens, and numbers within rounding."""
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, list) and any(isinstance(x, float) for x in one):
            numbers, others = ([x for x in part if isinstance(x, float)] for part in (one, other))
            assert numbers == pytest.approx(others, rel=1e-3, abs=1e-4)
            one, other = ([x for x in part if not isinstance(x, float)] for part in (one, other))
        assert one == other


FAMILIES = ("llama", "gemma3", "gpt_oss", "llama4_text", "deepseek_v3", "qwen3_5")


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_do_not_depend_on_the_page(family: str, paged: Paged, gpu_like: type[Any]) -> None:
    """Nor on how many there are: at last no more than for one sequence of full length and a few."""
    loaded = tiny_model(family)
    # only the last guards a state against what is drawn behind the end
    decoder = None if family == "qwen3_5" and gpu_like.ahead is not None else gpu_like
    paged(None)
    expected = everything(loaded)
    if family == "llama":
        paged(16)
        same(everything(loaded), expected)
    paged(4)
    same(everything(loaded, decoder), expected)
    if family in {"llama", "gemma3", "qwen3_5"}:
        paged(4, 20, rows=24)
        same(everything(loaded, decoder), expected)


def test_no_pass_reads_more_of_the_rows_than_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are padded to the longest of a pass, and each layer copies them."""
    loaded, pack = tiny_model(), Batch.pack
    expected = everything(loaded)
    read: list[tuple[str, int]] = []

    def packed(mode: Mode, segments: Sequence[Segment], cache: KVCache) -> Batch:
        if mode != "decode" and len(segments) > 1 and any(s.past for s in segments):
            read.append((mode, len(segments) * max(s.past for s in segments)))
        return pack(mode, segments, cache)

    monkeypatch.setattr(Batch, "pack", packed)
    monkeypatch.setattr("fttt.engine.batch.READ_PLACES", 36)
    # so that several read at once, whatever the clock says
    monkeypatch.setattr("fttt.engine.scheduler.LEAST_SHARED", 4)
    monkeypatch.setattr(Patience, "ready", lambda _, waiting, running: waiting > 0 == running)
    same(everything(loaded), expected)
    assert {mode for mode, _ in read} == {"prefill", "train"}
    assert max(places for _, places in read) <= 36


def _prefixed(length: int) -> LoadedModel:
    generator = torch.Generator().manual_seed(3)
    keys, values = (
        tuple(torch.randn(2, length, 8, generator=generator) for _ in range(2)) for _ in "kv"
    )
    return replace(tiny_model(), prefix=Prefix(keys, values), max_context=2048 - length)


@pytest.mark.parametrize("length", [5, 8])
def test_all_sequences_share_the_pages_of_a_prefix(length: int, paged: Paged) -> None:
    loaded = _prefixed(length)
    expected = everything(loaded)
    paged(4)
    same(everything(loaded), expected)


def generated(
    loaded: LoadedModel,
    asked: list[GenerateRequest],
    decoder: type[Any],
    **settings: Any,
) -> tuple[list[Any], int]:
    """Answers and pauses."""

    async def main() -> tuple[list[Any], int]:
        engine = BatchedEngine(loaded, **{"max_length": 100, "concurrency": 9, **settings})
        engine._decoder = decoder(engine._model, engine._cache, engine._bank)
        try:
            found = await asyncio.gather(*map(engine.generate, asked))
            cache = engine._cache
            assert (cache.free, cache.free_pages) == (engine.plan.rows, engine.plan.pages)
            return [(one.token_ids, one.logprobs) for one in found], engine.pauses
        finally:
            await engine.close()

    return asyncio.run(main())


def test_pausing_changes_no_setting_of_a_sequence(paged: Paged, gpu_like: type[Any]) -> None:
    """Penalties look at all tokens, a thought at its budget, and what is forced stays to come."""
    thought = ThoughtBudget(20, (), (250, 251), (11, 12, 13, 250, 251))
    plain = GenerateRequest((5, 6, 7, 8, 9), 60, 0.9, 0.95, logprobs=True)
    asked = [
        replace(plain, noise_key=key, repetition_penalty=penalty, thought=closed)
        for key, (penalty, closed) in enumerate([(1.0, None), (1.3, None), (1.0, thought)] * 3)
    ]
    expected, none = generated(tiny_model(), asked, gpu_like)
    assert none == 0
    for longest in (2048, 16):  # of a prefill pass: a long sequence is resumed in several
        paged(4, 31, prefill_tokens=longest)
        found, pauses = generated(tiny_model(), asked, gpu_like)
        assert pauses > 0
        for (ids, scores), (other_ids, other_scores) in zip(found, expected, strict=True):
            assert ids == other_ids
            assert scores == pytest.approx(other_scores, rel=1e-3, abs=1e-4)


def test_samples_share_the_full_pages_of_their_prompt(paged: Paged) -> None:
    paged(4)
    most: list[int] = []

    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=100, concurrency=8)
        take = engine._cache.extend

        def seen(row: int, tokens: int) -> bool:
            done = take(row, tokens)
            most.append(engine.plan.pages - engine._cache.free_pages)
            return done

        engine._cache.extend = seen  # type: ignore[method-assign]
        asked = [GenerateRequest(tuple(range(20, 61)), 7, 0.9, 1.0, key) for key in range(8)]
        await asyncio.gather(*map(engine.generate, asked))
        await engine.close()

    asyncio.run(main())
    assert max(most) == 10 + 8 * 2  # 40 tokens once; the 41st and what follows in two pages each


def test_a_conversation_is_continued_more_than_once(paged: Paged, prefilled: list[int]) -> None:
    paged(4, rows=8)

    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=100, concurrency=4)
        kept = (await engine.generate(GenerateRequest(tuple(range(20, 40)), 6, keep=True))).kept
        assert kept is not None
        prompts = [(*kept.token_ids, n, *TURN) for n in range(3)]
        other = BatchedEngine(tiny_model(), max_length=100, concurrency=4)
        alone = [await other.generate(GenerateRequest(p, 9, 0.8)) for p in prompts]
        await other.close()
        prefilled.clear()
        asked = [GenerateRequest(p, 9, 0.8, reuse=kept) for p in prompts]
        found = await asyncio.gather(*map(engine.generate, asked))
        assert [f.token_ids for f in found] == [a.token_ids for a in alone]
        assert prefilled == [5] * 3
        kept.close()
        assert engine._cache.free_pages == engine.plan.pages
        await engine.close()

    asyncio.run(main())


async def _asked(engine: BatchedEngine, n: int) -> Any:
    """One of many users: cancels, learns from its answer, continues it, or only takes it."""
    draw = Random(n)
    slot = await engine.open_adapter(SPEC, seed=n) if n % 4 == 1 else None
    prompt = tuple(range(20, 20 + draw.randint(3, 40))) if n % 3 else (5, 6, 7, 8, 9) * 4
    thought = ThoughtBudget(draw.randint(1, 9), (), (250, 251), (11, 12, 13, 250, 251))
    request = GenerateRequest(
        prompt, draw.randint(24, 44), draw.choice([0.0, 0.8, 1.2]), draw.choice([0.9, 1.0]), 77 * n,
        (2, 40) if n % 2 else (), slot, keep=slot is not None or n % 7 == 0,
        repetition_penalty=draw.choice([1.0, 1.4]), top_k=draw.choice([0, 7]),
        thought=None if n % 5 else thought,
    )  # fmt: skip
    task = asyncio.create_task(engine.generate(request))
    if n % 6 == 5:
        for _ in range(draw.randint(1, 20)):
            await asyncio.sleep(0)
        task.cancel()
    (found,) = await asyncio.gather(task, return_exceptions=True)
    said: list[Any] = []
    if not isinstance(found, asyncio.CancelledError):
        assert not isinstance(found, BaseException), found
        said.append(found.token_ids)
        if found.kept is not None and slot is not None:
            lesson = Lesson(found.kept, (Target(TURN, (0.5, 0.2, 0.3)),))
            said.append((await engine.train(TrainRequest(slot, (lesson,)))).loss)
        elif found.kept is not None:
            longer = GenerateRequest(prompt + found.token_ids[:6] + TURN, 9, reuse=found.kept)
            said.append((await engine.generate(longer)).token_ids)
        if found.kept is not None:
            found.kept.close()
    if slot is not None:
        slot.close()
    return [] if n % 6 == 5 else said  # whether it ended before it was cancelled may differ


def _crowd(loaded: LoadedModel, decoder: type[Any]) -> tuple[list[Any], int]:
    """What 36 users get, and how often a sequence was paused."""

    async def main() -> tuple[list[Any], int]:
        engine = BatchedEngine(loaded, max_length=96, concurrency=6, batch_size=6, adapter=SPEC)
        engine._decoder = decoder(engine._model, engine._cache, engine._bank)
        try:
            found = await asyncio.gather(*(_asked(engine, n) for n in range(36)))
            for _ in range(1000):  # in which cancelled ones are let go
                await asyncio.sleep(0)
            cache = engine._cache
            assert (cache.free, cache.free_pages) == (engine.plan.rows, engine.plan.pages)
            return found, engine.pauses
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize(("page", "pages", "rows"), [(16, 6, 16), (4, 24, 24), (4, 30, 24)])
def test_a_crowd_in_too_few_pages_gets_what_it_would_get(
    page: int, pages: int, rows: int, paged: Paged, gpu_like: type[Any]
) -> None:
    """Pages for one sequence of full length and few more, beside cancelled ones and lessons."""
    paged(None)
    expected, none = _crowd(tiny_model(), gpu_like)
    paged(page, pages, rows=rows)
    found, pauses = _crowd(tiny_model(), gpu_like)
    assert none == 0 < pauses
    same(found, expected)
