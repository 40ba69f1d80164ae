"""Fine-tuning beside the published loop: batch size 1, every sample padded to 4,096 tokens.

    python benchmarks/finetune.py --shape llama-8b                # LoRA, one GPU of 80 GB
    python benchmarks/finetune.py --shape llama-8b --memory       # peak memory of full fine-tuning
    python benchmarks/finetune.py --shape smollm2-135m --method full --profile --reference 0
    python benchmarks/finetune.py --shape tiny --padded 1024 --steps 8      # a try on any machine

Both sides train the same weights on the same samples in one process; samples are random tokens with
the lengths of GSM8K's training split (median 119 tokens of prompt and 88 of solution). Tokens a
second count real tokens of prompts and solutions, never padding. The first steps of each side
are not timed; on a GPU, those of a small model are captured within some sixty, so that what comes
after needs `--warm-up 60 --steps 90`.

`--memory` runs a few steps of full fine-tuning with bfloat16 weights that are rounded
stochastically, moments in 8 bits (torchao) and gradient checkpointing, and prints the peak.
`--profile` watches three more steps of ours, which are not timed, and prints how much of a step the
GPU works and in how many kernels: what is missing to the clock's time is launching them.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, random_model
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback, TrainerCallback, set_seed

from fttt.config import SETTINGS, FinetuneConfig, build
from fttt.finetune.parameters import count_trained, prepare
from fttt.finetune.solution_trainer import Counts, SolutionTrainer
from fttt.finetune.train import optimizer, training_arguments
from fttt.training import GoldExample

SAMPLES = 20
WARM_UP = 2
PROFILED = 3


def samples(count: int, vocabulary: int) -> list[GoldExample]:
    """Random tokens with about the lengths of GSM8K's training split."""
    draw = random.Random(0)

    def some(median: float, spread: float, least: int) -> tuple[int, ...]:
        length = max(least, round(median * draw.lognormvariate(0, spread)))
        return tuple(draw.randrange(3, vocabulary) for _ in range(length))

    return [GoldExample(f"{n}", some(119, 0.18, 75), some(88, 0.42, 28)) for n in range(count)]


class Watch(TrainerCallback):
    """When the timed steps began and ended, and how many tokens had been trained on.

    The device is idle then, and only then: between the steps the host may run ahead of it.
    """

    def __init__(self, warm_up: int, timed: int) -> None:
        """Time so many steps, the warm-up among them, and profile those that come after."""
        self._warm_up = warm_up
        self.trainer: SolutionTrainer | None = None
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self._timed = timed
        self._ends: list[tuple[float, int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Profile from here on, if this is the first step that is not timed."""
        if state.global_step == self._timed:
            self.profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note both."""
        assert self.trainer is not None
        if state.global_step in (self._warm_up, self._timed):
            wait()
            self._ends.append((time.perf_counter(), self.trainer.counts.tokens))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Profile no longer."""
        if state.global_step > self._timed:
            wait()
            self.profile.stop()

    @property
    def rate(self) -> float:
        """Tokens a second after the warm-up."""
        (begin, before), (end, after) = self._ends
        return (after - before) / (end - begin)

    @property
    def milliseconds(self) -> float:
        """A step after the warm-up, by the clock."""
        (begin, _), (end, _) = self._ends
        return 1e3 * (end - begin) / (self._timed - self._warm_up)


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(
    model: Any, config: FinetuneConfig, data: list[GoldExample], half: bool, watch: Watch
) -> None:
    """Train a prepared model, and watch the trainer."""
    cpu = not torch.cuda.is_available()
    settings = build(SETTINGS[config.method], config.settings, "the benchmark")
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            config, Path(folder), samples=len(data), validates=False, half=half, cpu=cpu
        )
        arguments.save_strategy = "no"
        trainer = SolutionTrainer(
            settings=settings, describe=None, counts=Counts(),
            batch_tokens=config.training.batch_tokens, tokenizer=None, model=model, args=arguments,
            train_dataset=data, eval_dataset=[], callbacks=[watch],
            optimizer_cls_and_kwargs=optimizer(config, settings),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        watch.trainer = trainer
        trainer.train()


def say_profile(watch: Watch) -> None:
    """Print where the time of a step goes."""
    kernels = [e for e in watch.profile.key_averages() if e.self_device_time_total > 0]
    busy = sum(e.self_device_time_total for e in kernels) / 1e3 / PROFILED
    print(
        f"a step: {watch.milliseconds:.1f} ms by the clock, {busy:.1f} ms of GPU work in "
        f"{sum(e.count for e in kernels) / PROFILED:,.0f} kernels"
    )
    for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:8]:
        own = e.self_device_time_total / 1e3 / PROFILED
        print(f"  {own:7.2f} ms in {e.count / PROFILED:6,.0f}: {e.key[:72]}")


def reference(model: Any, data: list[GoldExample], padded: int, lr: float, half: bool) -> float:
    """Tokens a second of the published loop, on a prepared model."""
    device = next(model.parameters()).device
    learned = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0)
    model.train()
    start, tokens = 0.0, 0
    for n, sample in enumerate(data):
        if n == WARM_UP:
            wait()
            start, tokens = time.perf_counter(), 0
        real = len(sample.prompt_ids) + len(sample.solution_ids)
        ids = torch.zeros(1, padded, dtype=torch.long)
        ids[0, :real] = torch.tensor(sample.prompt_ids + sample.solution_ids)
        labels = torch.full_like(ids, -100)
        labels[0, len(sample.prompt_ids) : real] = ids[0, len(sample.prompt_ids) : real]
        mask = (torch.arange(padded) < real).long()[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)
            ).loss
        (loss / SAMPLES).backward()
        tokens += real
        if (n + 1) % SAMPLES == 0:
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            adamw.step()
            adamw.zero_grad()
    wait()
    return tokens / (time.perf_counter() - start)


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--method", choices=list(SETTINGS), default="lora")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="of these, not timed")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--padded", type=int, default=4096, help="length of the reference's rows")
    parser.add_argument("--reference", type=int, default=20, help="samples of the reference")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profile", action="store_true", help="needs a GPU")
    options = parser.parse_args()
    if options.profile and not torch.cuda.is_available():
        parser.error("--profile needs a GPU")
    if options.steps <= options.warm_up:
        parser.error(f"--steps must be more than the {options.warm_up} that warm up")
    return options


def main() -> None:
    """Run what was asked for, and print it."""
    options = parsed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = device.type == "cuda"
    steps = options.steps + (PROFILED if options.profile else 0)
    method = "full" if options.memory else options.method
    master = method == "full" and not options.memory  # float32 weights, computed with in bfloat16
    dtype = torch.bfloat16 if (half or options.memory) and not master else torch.float32
    eight_bit = {"weights": "bfloat16", "optimizer": "adamw-8bit"}
    config = build(
        FinetuneConfig,
        {
            "method": method,
            "settings": eight_bit if options.memory else {},
            "training": {
                "samples": SAMPLES, "max_steps": steps, "lr": 1e-5,
                "batch_tokens": options.batch_tokens, "gradient_checkpointing": options.memory,
            },
        },
        "the benchmark",
    )  # fmt: skip
    data = samples(SAMPLES * steps, SHAPES[options.shape]["vocab_size"])
    set_seed(0)
    model = random_model(options.shape, dtype, device.type)
    model = prepare(model, build(SETTINGS[method], config.settings, "the benchmark"))
    name = torch.cuda.get_device_name() if half else "CPU"
    print(
        f"{options.shape}, {method}: {count_trained(model):,} trained parameters, {dtype}, {name}, "
        f"torch {torch.__version__}, settings {config.settings}"
    )
    if half:
        torch.cuda.reset_peak_memory_stats()
    watch = Watch(options.warm_up, options.steps)
    ours(model, config, data, half and not options.memory, watch)
    timed = options.steps - options.warm_up
    print(f"ours: {watch.rate:,.0f} tokens/s over {timed} steps of {SAMPLES} samples")
    if half:
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print(f"peak: {peak / 1e9:.2f} GB allocated, {held / 1e9:.2f} GB reserved")
    if options.profile:
        say_profile(watch)
    if not options.memory and options.reference:
        plain = reference(model, data[: options.reference], options.padded, 1e-5, half)
        print(
            f"reference: {plain:,.0f} tokens/s, batch size 1 padded to {options.padded:,}; "
            f"ours is {watch.rate / plain:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
