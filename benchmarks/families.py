"""Every decoder family of ``transformers``, tiny and random, against its own code.

Each is held by the engine's own check, and its greedy tokens, alone and beside others, against
``generate``, past its windows and chunks; then two updates of one question's low-rank weights,
beside another question's, against PEFT and ``torch.optim``. Writes the table of ``docs/models.md``.

    python benchmarks/families.py [TYPE ...] [--write]
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from fttt.engine import BatchedEngine, GenerateRequest, LoRASpec
from fttt.engine.selfcheck import ADAPTED, find_difference
from fttt.errors import UsageError
from fttt.models.locate import refusal
from fttt.testing.peft_reference import learn_beside_peft
from fttt.testing.tiny_models import family_types, loaded_tiny, random_family

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
PROMPTS = (5, 40, 17, 1)
NEW = 24


@dataclass(frozen=True)
class Row:
    """What was found of a family."""

    family: str
    outputs: str
    learning: str = ""


def find(family: str) -> Row:
    """Try a family."""
    why = refusal({"model_type": family})
    if why is not None:
        return Row(family, f"refused: {why}")
    try:
        model = random_family(family)
    except Exception as error:
        print(f"{family}: {type(error).__name__}: {error}", file=sys.stderr)
        return Row(family, "not tried")
    fault = find_difference(model)
    if fault is not None:
        return Row(family, f"refused: {fault}")
    try:
        differing = tokens_differ(family, model)
    except Exception as error:
        return Row(family, f"fails: {type(error).__name__}: {error}")
    if differing:
        return Row(family, f"WRONG: tokens differ {differing}")
    try:
        return Row(family, "equal", learning(family, model))
    except UsageError as error:
        return Row(family, "equal", f"refused: {error}")
    except Exception as error:
        return Row(family, "equal", f"fails: {type(error).__name__}: {error}")


def prompts() -> list[tuple[int, ...]]:
    """Token ids of prompts, the longest past every window."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(70, 130, (n,), generator=generator).tolist()) for n in PROMPTS]


def tokens_differ(family: str, model: Any) -> list[str]:
    """Which greedy answers are not those of ``generate``."""
    loaded = loaded_tiny(f"tiny-{family}", model, 512)
    wanted = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
            pad_token_id=0, eos_token_id=2,
        )  # fmt: skip
        wanted.append(tuple(out[0, len(prompt) :].tolist()))

    async def main(batch_size: int) -> list[tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=4, batch_size=batch_size)
        try:
            requests = [GenerateRequest(p, NEW, stop_ids=(2,)) for p in prompts()]
            return [a.token_ids for a in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.close()

    return [
        f"({'alone' if size == 1 else 'beside others'}, prompt of {n})"
        for size in (1, 4)
        for n, got, right in zip(PROMPTS, asyncio.run(main(size)), wanted, strict=True)
        if got != right
    ]


def learning(family: str, model: Any) -> str:
    """Whether two updates of two questions are those of PEFT, one question at a time."""
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    # not kv_b_proj: some models keep what it expands, so that its gradient reaches the context
    targets = tuple(name for name in ADAPTED if name in linear and name != "kv_b_proj")
    if not targets:
        return "no linear layer of attention to adapt"
    # eps: AdamW's first step would turn a gradient that is only rounding into one of full size
    spec = LoRASpec(targets=targets, dropout=0.0, lr=1e-2, eps=1e-3)
    loaded = loaded_tiny(f"tiny-{family}", model, 512)
    for losses, alone in learn_beside_peft(loaded, spec, prompts()[:2], (71, 99, 80, 122)):
        if any(abs(a - b) > 1e-3 * max(1, abs(b)) for a, b in zip(losses, alone, strict=True)):
            return f"WRONG: losses {losses} for {alone}"
    return "equal (" + ", ".join(targets) + ")"


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| model type | outputs against its own code | learning against PEFT |", "|-|-|-|"]
    lines += [f"| `{row.family}` | {row.outputs} | {row.learning} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Try the families that are named, or all."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    names = [word for word in sys.argv[1:] if not word.startswith("--")] or list(family_types())
    rows = []
    for family in names:
        rows.append(find(family))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if "--write" in sys.argv:
        text = DOCS.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        DOCS.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
