"""OpTune's training beside the published procedure: one example at a time, padded, token by token.

    python benchmarks/optune.py --shape llama-8b --window 16     # one GPU of 80 GB, random weights
    python benchmarks/optune.py --model smollm2-135m             # real weights, any device

Both sides train the same network on the same examples in one process. The reference is the
published procedure written plainly with `transformers` and autograd: each conversation and each
solution is padded to `--padded` tokens and runs alone, the running statistics are updated in a
Python loop over the tokens, and each change of a weight is a dense matrix. Since it is slow it sees
`--reference-examples` examples, whose losses must agree with ours; examples per second are
compared. The default lengths are those of GSM8K: its prompts and solutions have 125 and 100 tokens
on average with SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from shapes import random_loaded
from torch import Tensor

from engine import synchronize
from fttt.engine.sequences import prepared
from fttt.models import LoadedModel, load_model
from fttt.optune.attempts import AttemptExample
from fttt.optune.checkpoint import edited_layers
from fttt.optune.gradient import GradientRunner
from fttt.optune.network import OpTuneNetwork
from fttt.training import GoldExample


def make_examples(loaded: LoadedModel, options: argparse.Namespace) -> list[AttemptExample]:
    """Random tokens; the lengths vary by half around their means. Shuffled as in training."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = loaded.model.config.get_text_config().vocab_size

    def ids(mean: int) -> tuple[int, ...]:
        length = int(torch.randint(mean // 2, mean * 3 // 2 + 1, (), generator=generator))
        return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())

    examples: list[AttemptExample] = []
    while len(examples) < options.examples:
        prompt, name = ids(options.prompt_tokens), f"q{len(examples)}"
        gold = GoldExample(name, prompt, ids(options.solution_tokens))
        for n in range(options.attempts):
            attempt = ids(options.attempt_tokens)
            examples.append(AttemptExample(f"{name}#{n}", prompt + attempt, gold))
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [examples[n] for n in order[: options.examples]]


def ours(
    loaded: LoadedModel, network: OpTuneNetwork, examples: list[AttemptExample], window: int,
    batch_tokens: int,
) -> tuple[float, float]:  # fmt: skip
    """Examples a second, and the first window's mean loss."""
    reuse = 2**34 if loaded.device.startswith("cuda") else 0
    runner = GradientRunner(loaded.model, network, batch_tokens, reuse)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0)
    sizes = [p.numel() for p in runner.parameters]
    first = 0.0
    with prepared(loaded.model):
        start = time.perf_counter()
        for step, at in enumerate(range(0, len(examples), window)):
            parts = runner.record(examples[at : at + window])
            network.observe(network.summarize(part.factors for part in parts))
            sums = runner.gradient(parts, 0, step)
            for p, g in zip(runner.parameters, sums.gradient_P.split(sizes), strict=True):
                p.grad = (g / sums.examples).view_as(p)
            optimizer.step()
            if step == 0:
                first = float(sums.loss) / sums.examples
        synchronize(loaded)
    return len(examples) / (time.perf_counter() - start), first


class PlainStatistics:
    """Welford's method (1962) as it is written, one token after the other."""

    def __init__(self, width: int, device: str) -> None:
        self.count = 0
        self.mean = torch.zeros(width, device=device)
        self.squares = torch.zeros(width, device=device)

    def update(self, tokens: Tensor) -> None:
        for token in tokens:
            self.count += 1
            apart = token - self.mean
            self.mean = self.mean + apart / self.count
            self.squares = self.squares + apart * (token - self.mean)

    def z_score(self, tokens: Tensor) -> Tensor:
        std = (self.squares / max(self.count - 1, 1)).sqrt()
        return (tokens - self.mean) / torch.where(std > 0, std, torch.ones_like(std))


Hook = Callable[[Any, tuple[Tensor, ...], Tensor], Tensor | None]


@contextmanager
def hooked(model: Any, hooks: dict[str, Hook]) -> Iterator[None]:
    """Forward hooks on the named layers."""
    handles = [model.get_submodule(n).register_forward_hook(hook) for n, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reference:
    """The published procedure, with a network that has the same parameters."""

    def __init__(self, loaded: LoadedModel, network: OpTuneNetwork, padded: int) -> None:
        self.loaded, self.network, self.padded = loaded, network, padded
        self.statistics = {
            layer.shape: PlainStatistics(layer.inputs + layer.outputs, loaded.device)
            for layer in network.layers
        }

    def window(self, examples: list[AttemptExample]) -> tuple[float, float]:
        """Seconds that a window takes, and its mean loss."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, weight_decay=0.0)
        synchronize(self.loaded)
        start = time.perf_counter()
        factors = [self.factors(example) for example in examples]
        for each in factors:
            for layer in self.network.layers:
                self.statistics[layer.shape].update(each[layer.name])
        total = 0.0
        for example, each in zip(examples, factors, strict=True):
            loss = self.loss(example, each)
            (loss / len(examples)).backward()
            total += float(loss.detach())
        optimizer.step()
        synchronize(self.loaded)
        return time.perf_counter() - start, total / len(examples)

    def forward(self, ids: tuple[int, ...]) -> Tensor:
        """Logits of one sequence, padded."""
        width = max(self.padded, len(ids))
        device = self.loaded.device
        padded = F.pad(torch.tensor([ids], device=device), (0, width - len(ids)))
        mask = (torch.arange(width, device=device) < len(ids))[None].long()
        logits: Tensor = self.loaded.model(
            input_ids=padded, attention_mask=mask, use_cache=False
        ).logits[0, : len(ids)]
        return logits

    def factors(self, example: AttemptExample) -> dict[str, Tensor]:
        """``x`` beside ``delta`` at each edited layer, float32."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str) -> Hook:
            def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = (inputs[0].detach(), output.requires_grad_())

            return hook

        ids = example.conversation_ids
        with hooked(self.loaded.model, {x.name: note(x.name) for x in self.network.layers}):
            logits = self.forward(ids)
        labels = torch.tensor(ids[1:], device=logits.device)
        loss = F.cross_entropy(logits[:-1].float(), labels)
        deltas = torch.autograd.grad(loss, [output for _, output in seen.values()])
        return {
            name: torch.cat([x[0, : len(ids)], delta[0, : len(ids)]], dim=1).float()
            for (name, (x, _)), delta in zip(seen.items(), deltas, strict=True)
        }

    def loss(self, example: AttemptExample, factors: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the solution under dense changes."""
        hooks: dict[str, Hook] = {}
        for index, layer in enumerate(self.network.layers):
            shape = self.network.shape_of(layer)
            z = self.statistics[layer.shape].z_score(factors[layer.name])
            hidden = F.dropout(z @ shape.down_RF.T, self.network.dropout)
            z = z + hidden @ shape.up_FR.T + shape.bias_F
            change = self.network.alpha_L[index] * z[:, layer.inputs :].T @ z[:, : layer.inputs]
            hooks[layer.name] = self.adding(change)
        gold = example.gold
        with hooked(self.loaded.model, hooks):
            logits = self.forward(gold.prompt_ids + gold.solution_ids)
        labels = torch.tensor(gold.solution_ids, device=logits.device)
        return F.cross_entropy(logits[len(gold.prompt_ids) - 1 : -1].float(), labels)

    @staticmethod
    def adding(change: Tensor) -> Hook:
        return lambda _, inputs, output: output + F.linear(inputs[0], change.to(output.dtype))


def main() -> None:
    """Run both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--shape", choices=["llama-8b"], help="random weights of this shape instead"
    )
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--attempts", type=int, default=10, help="at each question, as published")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--prompt-tokens", type=int, default=125)
    parser.add_argument("--attempt-tokens", type=int, default=220)
    parser.add_argument("--solution-tokens", type=int, default=100)
    parser.add_argument("--padded", type=int, default=4096, help="tokens of a padded example")
    parser.add_argument("--reference-examples", type=int, default=2)
    parser.add_argument("--dtype", default="auto", help="of ours")
    parser.add_argument(
        "--reference-dtype", choices=["float32", "bfloat16"], help="of the reference (as ours)"
    )
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if options.shape:
        loaded = random_loaded("llama-8b", torch.bfloat16, "cuda" if on_gpu else "cpu")
    else:
        loaded = load_model(options.model, dtype=options.dtype)
    examples = make_examples(loaded, options)
    layers = edited_layers(loaded.model)

    def fresh(dropout: float = 0.1) -> OpTuneNetwork:
        return OpTuneNetwork(layers, dropout=dropout).to(loaded.device)

    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    shared, steps = fresh().count_parameters()
    print(f"{loaded.name} {loaded.dtype} on {name}, {shared:,} + {steps} parameters")
    ours(loaded, fresh(), examples[: options.window], options.window, options.batch_tokens)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rate, _ = ours(loaded, fresh(), examples, options.window, options.batch_tokens)
    print(f"ours: {rate:.3f} examples/s in windows of {options.window}")
    if on_gpu:
        print(f"peak: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    if options.reference_examples:
        few = examples[: options.reference_examples]
        _, mine = ours(loaded, fresh(dropout=0.0), few, len(few), options.batch_tokens)
        if options.reference_dtype:
            loaded.model.to(getattr(torch, options.reference_dtype))
        Reference(loaded, fresh(), options.padded).window(few[:1])  # warms up
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = Reference(loaded, fresh(dropout=0.0), options.padded).window(few)
        print(f"first loss: ours {mine:.4f}, reference {loss:.4f}")
        print(
            f"reference in {loaded.model.dtype}: {len(few) / seconds:.4f} examples/s; "
            f"ours is {rate * seconds / len(few):.1f} times as fast"
        )
        if on_gpu:
            print(f"peak of the reference: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
