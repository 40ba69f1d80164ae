"""Plain generation beside `transformers.generate`, same prompts, greedy, same tokens.

    python benchmarks/generate.py                # smollm2-135m, batch 1 and 16
    python benchmarks/generate.py --full-length  # each answer has --new-tokens tokens

Answers end where the model ends them, so `transformers` runs each batch until its longest answer
is done while the engine's lanes continue with what is left; of short answers most of the time is
that of their prompts. Both sides take turns; the tokens are compared and the ratios are those of
the medians, by the clock and by the process's own processor time, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import torch

from fttt.engine import BatchedEngine, GenerateRequest
from fttt.models import LoadedModel, load_model
from fttt.tasks import get_task
from fttt.tasks.task import TaskOptions

Ids = tuple[int, ...]
Seconds = tuple[float, float]
"""By the clock, and of the processor."""


def now() -> Seconds:
    """When it is."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """What has passed."""
    clock, processor = now()
    return clock - start[0], processor - start[1]


def theirs(
    loaded: LoadedModel, prompts: list[Ids], new_tokens: int, ends_at: Ids
) -> tuple[list[Ids], Seconds]:
    """Answers of `transformers.generate` on one left-padded batch, and its seconds."""
    pad = loaded.stop_ids[0]
    loaded.model.generation_config.eos_token_id = list(ends_at) or None
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    start = now()
    out = loaded.model.generate(
        ids.to(loaded.device), attention_mask=mask.to(loaded.device), do_sample=False,
        max_new_tokens=new_tokens, pad_token_id=pad,
    )  # fmt: skip
    seconds = since(start)
    answers = []
    for row in out[:, longest:].tolist():
        ends = [n for n, token in enumerate(row) if token in ends_at]
        answers.append(tuple(row[: ends[0] + 1] if ends else row))
    return answers, seconds


def ours(
    loaded: LoadedModel, prompts: list[Ids], new_tokens: int, ends_at: Ids
) -> tuple[list[Ids], Seconds]:
    """Answers of the engine, and its seconds."""

    async def main() -> tuple[list[Ids], Seconds]:
        engine = BatchedEngine(
            loaded, max_length=max(map(len, prompts)) + new_tokens, concurrency=len(prompts)
        )
        requests = [GenerateRequest(p, new_tokens, stop_ids=ends_at) for p in prompts]
        start = now()
        answers = await asyncio.gather(*map(engine.generate, requests))
        seconds = since(start)
        await engine.close()
        return [a.token_ids for a in answers], seconds

    return asyncio.run(main())


def main() -> None:
    """Run both sides in turn and print the ratio for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full-length", action="store_true", help="no answer ends early")
    options = parser.parse_args()
    loaded = load_model(options.model)
    ends_at = () if options.full_length else loaded.stop_ids
    questions = get_task("arithmetic").load(TaskOptions())
    print(f"{loaded.name} {loaded.dtype} on {loaded.device}, {torch.get_num_threads()} threads")
    for size in options.batch_sizes:
        prompts = [loaded.chat.prompt_ids(q.prompt) for q in questions[:size]]
        with torch.no_grad():
            theirs(loaded, prompts[:1], 4, ends_at)
            ours(loaded, prompts[:1], 4, ends_at)
            seconds: dict[str, list[Seconds]] = {"theirs": [], "ours": []}
            for _ in range(options.runs):
                expected, took = theirs(loaded, prompts, options.new_tokens, ends_at)
                seconds["theirs"].append(took)
                answers, took = ours(loaded, prompts, options.new_tokens, ends_at)
                seconds["ours"].append(took)
        tokens = sum(map(len, answers))
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        a, b = (
            [*map(statistics.median, zip(*seconds[side], strict=True))]
            for side in ("ours", "theirs")
        )
        print(
            f"batch {size}: ours {tokens / a[0]:.1f} tokens/s, transformers.generate "
            f"{tokens / b[0]:.1f} tokens/s, {b[0] / a[0]:.2f} times, {b[1] / a[1]:.2f} times by "
            f"processor time; {same} of {size} answers equal"
        )


if __name__ == "__main__":
    main()
