"""What fits a GPU that is not here: the engine's plan for a model of a shape, from the sizes.

    python benchmarks/plan.py                        # the 8B shape in 80 GB, for docs/speed.md
    python benchmarks/plan.py --memory 141e9 --answers 2048 8192

Nothing is run and no weight is made: the planner is told that the model lies on a GPU of
``--memory`` bytes, of which ``--taken`` are held by others, and asked what a run of 1,024 questions
would get, with prompts of up to ``--prompt`` tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from shapes import SHAPES, random_model

from fttt.engine import memory_plan
from fttt.engine.adapters import lora
from fttt.engine.cache import Heads
from fttt.engine.request import LoRASpec
from fttt.models import ChatFormat, LoadedModel
from fttt.testing import tiny_tokenizer

QUESTIONS = 1024


@contextmanager
def on_a_gpu(model: Any, memory: int, taken: int) -> Iterator[None]:
    """Let the planner find a model's weights on a GPU."""
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    layers = range(config.num_hidden_layers)
    heads = {n: Heads(config.num_key_value_heads, dim, dim, n) for n in layers}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    answers = {
        "free_bytes": memory - taken - weights, "total_bytes": memory, "held_here": weights,
        "read_heads": heads,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(memory_plan, name, lambda _, own=answer: own))
        stack.enter_context(patch.object(lora, "can_capture", lambda _: True))
        stack.enter_context(
            patch.object(
                torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory)
            )
        )
        yield


def main() -> None:
    """Print a row for each length of answers, without and with adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-8b")
    parser.add_argument("--memory", type=float, default=85.0e9, help="bytes of the GPU")
    parser.add_argument("--taken", type=float, default=1e9, help="of them held by others")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answers", type=int, nargs="+", default=[2048, 32768])
    options = parser.parse_args()
    model = random_model(options.shape, torch.bfloat16, "meta").eval().requires_grad_(False)
    tokenizer = tiny_tokenizer()
    loaded = LoadedModel(
        name=options.shape, model=model, tokenizer=tokenizer, chat=ChatFormat(tokenizer),
        stop_ids=(2,), max_context=SHAPES[options.shape]["max_position_embeddings"],
        dtype="bfloat16", device="cuda",
    )  # fmt: skip
    print("| | lanes | tokens each | of full length |\n| --- | ---: | ---: | ---: |")
    with on_a_gpu(model, int(options.memory), int(options.taken)):
        for answer in options.answers:
            for name, spec in (("best-of-n", None), ("fttt", LoRASpec())):
                made = memory_plan.plan_memory(
                    loaded, max_length=options.prompt + answer, batch_size=None,
                    concurrency=QUESTIONS, adapter=spec, beams=0,
                    adapters=QUESTIONS if spec else None, least_adapters=1,
                )  # fmt: skip
                each = made.pages * made.page // made.batch_size
                whole = made.pages // -(-made.capacity // made.page)
                print(
                    f"| `{name}`, answers of up to {answer:,} tokens | {made.batch_size:,} | "
                    f"{each:,} | {whole} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
