"""Beam search by the engine, beside `generate(num_beams=N)` of transformers on the same questions.

Both write all tokens of all beams (`--stop` lets them end), in one run, from the same weights. The
reference takes `--reference-batch` questions at a time, the first `--reference` of them; questions
a second are compared, and the tokens that both found.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import torch

from fttt.engine import BatchedEngine, BeamRequest
from fttt.models import LoadedModel, load_model

QUESTION = "A farmer has {} boxes with {} apples each and gives {} apples away. How many are left?"

Found = list[list[tuple[int, ...]]]
"""Of each question, the tokens of its beams, best first."""


def synchronize(loaded: LoadedModel) -> None:
    """Wait for the device."""
    if loaded.device.startswith("cuda"):
        torch.cuda.synchronize()


def ours(
    loaded: LoadedModel, requests: list[BeamRequest], batch_size: int | None
) -> tuple[Found, float, str]:
    """What the engine finds, its seconds without the first question's, and its memory plan."""

    async def main() -> tuple[Found, float, str]:
        longest = max(len(r.prompt_ids) + r.max_new_tokens for r in requests)
        beams = requests[0].beams
        engine = BatchedEngine(
            loaded,
            max_length=longest,
            batch_size=batch_size,
            concurrency=len(requests) * beams,
            beams=beams,
        )
        try:
            # kernels are compiled and the larger graphs captured on first use
            short = [BeamRequest(r.prompt_ids, beams, 2, r.stop_ids) for r in requests]
            await asyncio.gather(*map(engine.beam, short))
            engine.reset_counters()
            synchronize(loaded)
            start = time.perf_counter()
            found = await asyncio.gather(*map(engine.beam, requests))
            seconds = time.perf_counter() - start
        finally:
            await engine.close()
        return [[b.token_ids for b in beams] for beams in found], seconds, engine.plan.describe()

    return asyncio.run(main())


def reference(loaded: LoadedModel, requests: list[BeamRequest], batch: int) -> tuple[Found, float]:
    """What transformers finds, and its seconds."""
    found: Found = []
    seconds = 0.0
    for start in range(-batch, len(requests), batch):  # the first batch warms up
        asked = requests[max(start, 0) : max(start, 0) + batch]
        longest = max(len(r.prompt_ids) for r in asked)
        pads = [longest - len(r.prompt_ids) for r in asked]
        ids = [[0] * pad + [*r.prompt_ids] for pad, r in zip(pads, asked, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        new_tokens = asked[0].max_new_tokens if start >= 0 else 2
        synchronize(loaded)
        begin = time.perf_counter()
        model: Any = loaded.model
        out = model.generate(
            torch.tensor(ids, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            num_beams=asked[0].beams,
            num_return_sequences=asked[0].beams,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=list(asked[0].stop_ids) or -1,
            pad_token_id=0,
        )
        synchronize(loaded)
        if start < 0:
            continue
        seconds += time.perf_counter() - begin
        rows = out[:, longest:].unflatten(0, (len(asked), -1)).tolist()
        found += [[_cut(row, asked[0].stop_ids) for row in beams] for beams in rows]
    return found, seconds


def _cut(row: list[int], stop_ids: tuple[int, ...]) -> tuple[int, ...]:
    """A beam up to its stop token."""
    end = next((n + 1 for n, token in enumerate(row) if token in stop_ids), len(row))
    return tuple(row[:end])


def main() -> None:
    """Run both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--beams", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=320)
    parser.add_argument("--batch-size", type=int, help="beams at once, of all questions")
    parser.add_argument("--reference", type=int, default=4, help="questions of the reference")
    parser.add_argument("--reference-batch", type=int, default=4, help="of them at once")
    parser.add_argument("--stop", action="store_true", help="let beams end")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    loaded = load_model(options.model, dtype=options.dtype)
    stops = loaded.stop_ids if options.stop else ()
    requests = [
        BeamRequest(
            loaded.chat.prompt_ids(QUESTION.format(n, n + 5, n // 2)),
            options.beams,
            options.new_tokens,
            stops,
        )
        for n in range(3, 3 + options.questions)
    ]
    name = torch.cuda.get_device_name() if loaded.device.startswith("cuda") else "CPU"
    print(f"{loaded.name} {loaded.dtype} on {name}, torch {torch.__version__}")
    found, seconds, plan = ours(loaded, requests, options.batch_size)
    rate = len(found) / seconds
    tokens = sum(len(beam) for beams in found for beam in beams)
    print(f"plan: {plan}")
    print(
        f"ours: {len(found)} questions of {options.beams} beams in {seconds:.2f} s, "
        f"{rate:.3f} questions/s, {tokens / seconds:.0f} tokens/s of beams that came out"
    )
    if options.reference:
        few = requests[: options.reference]
        expected, seconds = reference(loaded, few, options.reference_batch)
        theirs = len(few) / seconds
        pairs = [
            (a, b)
            for own, other in zip(found, expected, strict=False)
            for a, b in zip(own, other, strict=True)
        ]
        same = sum(a == b for a, b in pairs)
        first = sum(own[0] == other[0] for own, other in zip(found, expected, strict=False))
        print(
            f"transformers: {len(few)} questions in {seconds:.2f} s, {theirs:.4f} questions/s; "
            f"ours is {rate / theirs:.1f} times as fast\n"
            f"equal: {same} of {len(pairs)} beams in order, {first} of {len(few)} first ones"
        )


if __name__ == "__main__":
    main()
