"""A fine-tuned checkpoint evaluated by the engine, beside the published loop of `generate`.

    python benchmarks/finetune_evaluate.py --shape llama-8b     # one GPU of 80 GB, random weights
    python benchmarks/finetune_evaluate.py --checkpoint DIR     # a checkpoint of your own
    python benchmarks/finetune_evaluate.py --shape tiny --padded 512 --questions 32     # a try

Both sides sample answers to the same questions from the same LoRA checkpoint, in one run. The
reference is the published loop, written plainly: PEFT's model, eight questions at a time, padded on
the left to 4,096 tokens, until the longest of the eight is done. How long an answer may be is drawn
beforehand (log-normal, median `--new-tokens`) and the same on both sides, and no answer ends
earlier. Tokens a second count tokens of answers, never padding. The reference runs on the first
`--reference` questions; nothing is extrapolated.

With `--temperature 0` the answers of both are compared as well.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, random_loaded

from fttt.engine import BatchedEngine, GenerateRequest
from fttt.finetune.load import attach
from fttt.finetune.metadata import FinetuneInfo, model_shape, read_info, write_info
from fttt.models import LoadedModel, load_model

QUESTION = "A farmer has {} boxes with {} apples each and gives {} apples away. How many are left?"
Answers = list[tuple[int, ...]]


def random_checkpoint(loaded: LoadedModel, folder: Path) -> None:
    """LoRA of the published settings (rank 16, the last quarter of the layers), random numbers."""
    from peft import LoraConfig, get_peft_model

    layers = loaded.model.config.num_hidden_layers
    last = list(range(layers - max(1, layers // 4), layers))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"],
        layers_to_transform=last,
    )  # fmt: skip
    model: Any = get_peft_model(loaded.model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.02)
    model.save_pretrained(folder)
    model.unload()
    facts = FinetuneInfo(
        method="lora", model=loaded.name, base_model=loaded.name,
        architecture=model_shape(loaded.model.config), task="arithmetic", seed=0, settings={},
        step=0, epoch=0, trained_parameters=sum(p.numel() for p in trained), trained_tokens=0,
        tokens=0, seconds=0,
    )  # fmt: skip
    write_info(folder, facts)


def reference(
    loaded: LoadedModel, folder: Path, requests: list[GenerateRequest], padded: int, batch: int
) -> tuple[Answers, float]:
    """Answers and seconds of the published loop; the model is as before when it has ended."""
    from peft import PeftModel
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Done(StoppingCriteria):
        """A row is done when its answer is as long as it may be."""

        def __init__(self, lengths: list[int]) -> None:
            self.ends = torch.tensor(lengths, device=loaded.device) + padded

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
            return self.ends <= input_ids.shape[1]

    model: Any = PeftModel.from_pretrained(loaded.model, folder).eval()
    first = requests[0]
    sampling = {"temperature": first.temperature, "top_p": first.top_p, "top_k": 0}
    config = GenerationConfig(
        do_sample=first.temperature > 0, max_new_tokens=max(r.max_new_tokens for r in requests),
        pad_token_id=0, eos_token_id=-1, **(sampling if first.temperature > 0 else {}),
    )  # fmt: skip
    answers: Answers = []
    seconds = 0.0
    for start in range(-batch, len(requests), batch):  # the first batch warms up
        asked = requests[max(start, 0) : max(start, 0) + batch]
        lengths = [r.max_new_tokens if start >= 0 else 4 for r in asked]
        pads = [padded - len(r.prompt_ids) for r in asked]
        ids = [[0] * pad + [*r.prompt_ids] for pad, r in zip(pads, asked, strict=True)]
        mask = [[0] * pad + [1] * (padded - pad) for pad in pads]
        wait()
        begin = time.perf_counter()
        out = model.generate(
            input_ids=torch.tensor(ids, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([Done(lengths)]),
        )
        rows = out[:, padded:].tolist()
        if start >= 0:
            seconds += time.perf_counter() - begin
            answers += [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]
    model.unload()
    return answers, seconds


def ours(
    loaded: LoadedModel, requests: list[GenerateRequest], batch_size: int | None
) -> tuple[Answers, float, str]:
    """Answers and seconds of the engine, and its memory plan."""

    async def main() -> tuple[Answers, float, str]:
        longest = max(len(r.prompt_ids) + r.max_new_tokens for r in requests)
        engine = BatchedEngine(
            loaded, max_length=longest, batch_size=batch_size, concurrency=len(requests)
        )
        try:
            # kernels are compiled and graphs captured on first use
            short = [GenerateRequest(r.prompt_ids, 1 + n % 16) for n, r in enumerate(requests)]
            await asyncio.gather(*map(engine.generate, short))
            wait()
            start = time.perf_counter()
            found = await asyncio.gather(*map(engine.generate, requests))
            seconds = time.perf_counter() - start
        finally:
            await engine.close()
        return [answer.token_ids for answer in found], seconds, engine.plan.describe()

    return asyncio.run(main())


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a LoRA checkpoint of `fttt finetune`")
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny", help="random weights")
    parser.add_argument("--questions", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=150, help="of half of the answers")
    parser.add_argument("--spread", type=float, default=0.4, help="0: all answers of one length")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--batch-size", type=int, help="of the engine; default: what fits")
    parser.add_argument("--reference", type=int, default=16, help="questions of the reference")
    parser.add_argument("--reference-batch", type=int, default=8)
    parser.add_argument("--padded", type=int, default=4096)
    return parser.parse_args()


def main() -> None:
    """Run both sides and print the ratio."""
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or Path(scratch)
        if options.checkpoint:
            loaded = load_model(read_info(folder).model)
        else:
            gpu = torch.cuda.is_available()
            dtype = torch.bfloat16 if gpu else torch.float32
            loaded = random_loaded(options.shape, dtype, "cuda" if gpu else "cpu")
            random_checkpoint(loaded, folder)
        draw = random.Random(0)
        requests = [
            GenerateRequest(
                loaded.chat.prompt_ids(QUESTION.format(n, n + 5, n // 2)),
                max(
                    1, min(2048, round(options.new_tokens * draw.lognormvariate(0, options.spread)))
                ),
                options.temperature,
                0.95,
                noise_key=n * 0x9E3779B97F4A7C15,
            )
            for n in range(3, 3 + options.questions)
        ]
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"{loaded.name} {loaded.dtype} on {name}, torch {torch.__version__}")
        few = requests[: options.reference]
        expected, theirs = reference(loaded, folder, few, options.padded, options.reference_batch)
        found, seconds, plan = ours(attach(loaded, folder), requests, options.batch_size)
    rate = sum(map(len, expected)) / theirs
    tokens = sum(map(len, found))
    print(f"plan: {plan}")
    print(f"reference: {len(few)} questions in {theirs:.2f} s, {rate:.1f} tokens/s")
    print(
        f"ours: {len(found)} questions in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s; "
        f"{tokens / seconds / rate:.0f} times as fast"
    )
    if options.temperature == 0:
        same = sum(a == b for a, b in zip(found, expected, strict=False))
        print(f"equal: {same} of {len(few)} answers")


if __name__ == "__main__":
    main()
