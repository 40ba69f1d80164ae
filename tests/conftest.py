"""What tests of several layers share: one thread, and checkpoints that need no training."""

import copy
import gc
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils._pytree import tree_leaves

from fttt.config import SETTINGS, build
from fttt.engine.captured_pass import HostCalls
from fttt.engine.families import Replacements
from fttt.engine.operations import faster_operations
from fttt.finetune.metadata import FinetuneInfo, Method, model_shape, write_info
from fttt.finetune.parameters import count_trained, export, prepare
from fttt.models import LoadedModel
from fttt.models.served import find_served
from fttt.optune.checkpoint import OpTuneInfo, TrainingState, edited_layers, write_checkpoint
from fttt.optune.network import OpTuneNetwork, RunningStatistics
from fttt.testing import save_tiny_model, tiny_model
from fttt.testing.scripted_server import ScriptedServer

settings.register_profile(
    "any machine",
    deadline=None,  # a busy one may take seconds for one case,
    suppress_health_check=[HealthCheck.too_slow],  # or for the draw of one;
    derandomize=True,  # and what passes on one passes on another
)
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let no test draw what depends on the tests before it."""
    random.seed(0)
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Keep what imports have made out of later garbage collections, which accelerate and sweeps
    ask for, and which would look at a million objects of torch and transformers each time.
    """
    gc.collect()
    gc.freeze()


Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(
    params=[("llama", 5, 2), ("qwen", 5, 2), ("gemma3", 13, 0), ("qwen3", 9, 2)],
    ids=lambda family: family[0],
)
def replaced_logits(request: pytest.FixtureRequest) -> Callable[[Any, torch.device], Logits]:
    """Finds what a device's forms of a model's own operations replace, and takes it back.

    Returns the logits before, with the forms, and with them and without a gradient.
    """
    family, norms, layers = request.param

    def logits(forms: Any, device: torch.device) -> Logits:
        model = tiny_model(family).model.to(device)
        ids = torch.arange(5, 12, device=device)[None]
        before = model(ids).logits
        faster = Replacements(faster_operations(model, forms))
        assert len(faster) == norms + 2 + 2 + layers  # gates, rotary functions, sums of layers
        faster.enable()
        inside = model(ids).logits
        with torch.no_grad():
            without_gradient = model(ids).logits
        faster.disable()
        assert torch.equal(model(ids).logits, before)
        return before, inside, without_gradient

    return logits


@dataclass(frozen=True)
class Tuned:
    """A checkpoint and the model that it was saved from, as its trainer held it."""

    folder: Path
    base: Path
    model: Any
    """With PEFT's modules (or our adapters) in it, unmerged, in float32."""
    loaded: LoadedModel
    """The base model."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of a tiny model only wait for one another, and round sums in another way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MakeCheckpoint = Callable[..., Tuned]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """A function that writes a checkpoint of a tiny model, with random numbers as trained ones."""

    def make(method: Method, family: str = "llama", task: str = "arithmetic") -> Tuned:
        base = tmp_path / f"tiny-{family}"
        if not base.is_dir():
            save_tiny_model(base, family)
        loaded = tiny_model(family)
        model = copy.deepcopy(loaded.model)
        folder = tmp_path / f"tuned-{method}"
        folder.mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = _tune(model, method, loaded, base, folder)
        info = FinetuneInfo(
            method=method,
            model=str(base),
            base_model=loaded.name,
            architecture=model_shape(loaded.model.config),
            task=task,
            seed=42,
            settings={},
            step=7,
            epoch=1.0,
            trained_parameters=count_trained(model),
            trained_tokens=1234,
            tokens=4321,
            seconds=5.5,
        )
        write_info(folder, info)
        return Tuned(folder, base, model.eval(), loaded)

    return make


MakeNetwork = Callable[..., Path]


@pytest.fixture
def make_network(tmp_path: Path) -> MakeNetwork:
    """A function that writes an OpTune network of a tiny model, with random numbers in it."""

    def make(family: str = "llama", *, feedback: str = "Wrong.", step: int = 3) -> Path:
        layers = edited_layers(tiny_model(family).model, last=1)
        network = OpTuneNetwork(layers, rank=4, alpha=0.05)
        for module in network.modules():
            if isinstance(module, RunningStatistics):
                generator = torch.Generator().manual_seed(7)
                features = module.mean_F.shape[0]
                module.update(torch.randn(50, features, generator=generator))
        info = OpTuneInfo(
            model=f"tiny-{family}", task="arithmetic", layers=layers, rank=4, dropout=0.1,
            feedback=feedback, step=step, parameters=sum(network.count_parameters()),
        )  # fmt: skip
        return write_checkpoint(tmp_path / "network", info, network, TrainingState({}, {}))

    return make


def _tune(model: Any, method: Method, loaded: LoadedModel, base: Path, folder: Path) -> Any:
    """Change what the method trains, and save it as its trainer does."""
    settings = build(SETTINGS[method], {}, "the test")
    model = prepare(model, settings)
    _shake(model, 0.02 if method == "full" else 0.2)
    export(model, settings, folder, str(base))
    if method == "full":
        loaded.tokenizer.save_pretrained(folder)
    return model


def _shake(model: Any, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)


Serve = Callable[[Callable[[dict[str, Any]], Any]], ScriptedServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function that starts a scripted server."""
    pytest.importorskip("openai", reason="asks servers: pip install 'fttt[endpoint]'")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    find_served.cache_clear()
    servers: list[ScriptedServer] = []

    def start(script: Callable[[dict[str, Any]], Any]) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nobody is given by chance before a process takes it.

    So none of those that the system hands out by itself, as a port 0 or to a client.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(10_000, max(lowest, 11_000)), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


StopRun = Callable[..., tuple[int, str]]
_STOPPED = """
import os, sys
from fttt.cli import main
from fttt.store import line_file

lines, number = int(sys.argv[1]), int(sys.argv[2])
append = line_file.LineFile.append

def append_and_stop(file, record):
    append(file, record)
    if file.path.name == "events.jsonl" and file.path.read_bytes().count(b"\\n") == lines:
        os.kill(os.getpid(), number)

line_file.LineFile.append = append_and_stop
main(sys.argv[3:])
"""


@pytest.fixture
def stop_run() -> StopRun:
    """A function that runs ``fttt`` in a process of its own until its journal has so many lines.

    It takes words, lines and a signal (SIGKILL), and returns the exit status and the errors. The
    process sends the signal to itself: whoever watched it from outside might look too late.
    """

    def run(
        words: Sequence[str], lines: int, number: int = signal.SIGKILL, cwd: Path | None = None
    ) -> tuple[int, str]:
        command = [sys.executable, "-c", _STOPPED, str(lines), str(int(number)), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, timeout=300
        )
        return done.returncode, done.stderr

    return run


class Recorder(HostCalls):
    """Records a step's operations and runs them on the same tensors, as a GPU's graph does."""

    def __init__(self) -> None:
        super().__init__(gpu=False)
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def __call__(self, step: Callable[[], None]) -> Callable[[], None] | None:
        step()
        with self:
            step()
        return None if self.names else self.replay

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graph_recorder() -> type[Recorder]:
    """A stand-in for :class:`fttt.engine.captured_pass.GraphCapture` on a CPU; one a step."""
    return Recorder
