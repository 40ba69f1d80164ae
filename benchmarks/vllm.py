"""The engine beside vLLM on one GPU: the same prompts, sampling and shapes, with random weights.

    python benchmarks/vllm.py                                   # all cases, a GPU of 80 GB
    python benchmarks/vllm.py --cases 8b-512 8b-lora-64 --python /opt/vllm/bin/python
    python benchmarks/vllm.py --ours --device cpu --shape tiny  # seconds, to see that it runs
    python benchmarks/vllm.py --show outputs/vllm.jsonl

Each case of each side has a process of its own, under a time limit; with `--together` the cases of
one shape share one, and on vLLM's side one engine, whose start takes long. What was measured is
written to `--out` as it comes, so that a case which fails, or a machine that is taken back, loses
nothing else, and `--ours` and `--reference` may be measured one after the other into one file. What
a process prints is in the file's neighbour that ends in `.log`.

vLLM is not needed in this environment: `--python` names the interpreter that has it, and
`--python-path` a folder of packages for it alone. Rates count prefill and all; the floor is what
that takes at the least: each step the longer of its bytes at `--bandwidth` and its operations at
`--operations`, with all sequences in flight from the first step to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from shapes import SHAPES

HERE = Path(__file__).resolve().parent
SIDES = {"ours": "ours", "reference": "vLLM"}
NUMBER = 2
"""Bytes of a weight, of a key and of a value in bfloat16."""


@dataclass(frozen=True, slots=True)
class Case:
    """Questions that are asked all at once, each so many times, by answers of one length."""

    name: str
    shape: str
    questions: int
    samples: int = 1
    prompt: int = 128
    new: int = 256
    temperature: float = 0.6
    top_p: float = 0.95
    adapters: bool = False
    """Whether each question has low-rank weights of its own (rank 4 on q and v), which are changed
    after its answer: ours by a train step, vLLM's by files that are written and loaded."""
    seed: int = 0

    @property
    def sequences(self) -> int:
        return self.questions * self.samples

    @property
    def group(self) -> tuple[str, int]:
        """Cases of one group can share an engine."""
        return self.shape, self.questions if self.adapters else 0


CASES = {
    case.name: replace(case, seed=number)
    for number, case in enumerate(
        (
            Case("8b-64", "llama-8b", 64),
            Case("8b-256", "llama-8b", 256),
            Case("8b-512", "llama-8b", 512),
            Case("8b-512-greedy", "llama-8b", 512, temperature=0.0),
            Case("8b-1024", "llama-8b", 1024),
            Case("8b-samples", "llama-8b", 32, samples=32, prompt=512),
            Case("8b-lora-64", "llama-8b", 64, adapters=True),
            Case("8b-lora-256", "llama-8b", 256, adapters=True),
            Case("135m-256", "smollm2-135m", 256),
            Case("135m-1024", "smollm2-135m", 1024),
        )
    )
}


def floor_seconds(case: Case, bandwidth: float, operations: float) -> float:
    """The least seconds of a case on a device of so many bytes and operations a second.

    The prompt of a question's samples is computed once, stored once and read once a step. Logits
    and activations count as nothing.
    """
    sizes = SHAPES[case.shape]
    layers, hidden = sizes["num_hidden_layers"], sizes["hidden_size"]
    heads, shared = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    width = hidden // heads
    attention = 2 * hidden * width * (heads + shared)
    body = layers * (attention + 3 * hidden * sizes["intermediate_size"])
    weights = body + sizes["vocab_size"] * hidden
    cached = 2 * layers * shared * width * NUMBER
    rank = 4 * layers * (2 * hidden + width * (heads + shared)) if case.adapters else 0
    rows, prompts = case.sequences, case.questions * case.prompt

    def attended(pairs: float) -> float:
        return 4 * layers * heads * width * pairs

    work = 2 * body * prompts + 2 * (weights - body) * rows + attended(prompts * case.prompt / 2)
    read = weights * NUMBER + prompts * cached
    total = max(work / operations, read / bandwidth)
    for step in range(1, case.new):  # the first token comes from the prompts' pass
        read = weights * NUMBER + (prompts + rows * step) * cached
        read += case.questions * rank * NUMBER
        work = 2 * weights * rows + attended(rows * (case.prompt + step))
        total += max(read / bandwidth, work / operations)
    return total


def floor_of(case: Case, options: argparse.Namespace) -> float:
    """The least seconds by the options' bytes and operations."""
    return floor_seconds(case, options.bandwidth, options.operations)


class Runner:
    """Starts the processes of a measurement, one at a time, and ends them in time."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.failed = options, folder, 0
        self.log = options.out.with_suffix(".log")
        self.end = time.monotonic() + options.budget if options.budget else None

    def run(self, side: str, cases: list[Case]) -> None:
        """Measure cases in one process of their own."""
        names = " ".join(case.name for case in cases)
        left = float(self.options.limit)
        if self.end is not None:
            left = min(left, self.end - time.monotonic())
        if left < 5:
            print(f"{names}, {SIDES[side]}: left out, since --budget is spent", flush=True)
            self.failed += 1
            return
        print(f"{names}, {SIDES[side]} (at most {left:.0f} s) ...", flush=True)
        since = len(read(self.options.out))
        begun = time.monotonic()
        outcome = self._process(side, self._job(side, cases), left)
        lines = read(self.options.out)[since:]
        for case in cases:
            found = [line for line in lines if line.get("case") == case.name]
            if not found:
                error = next((line["error"] for line in lines if "error" in line), outcome)
                found = [{"side": side, "case": case.name, "error": error}]
                with self.options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found[0]) + "\n")
            self.failed += "error" in found[-1]
            text = told(found[-1], floor_of(case, self.options))
            print(f"  {case.name}, {SIDES[side]}: {text}", flush=True)
        print(f"  {time.monotonic() - begun:.0f} s, start included", flush=True)

    def _job(self, side: str, cases: list[Case]) -> Path:
        """The file that tells a process what to do."""
        options, shape = self.options, cases[0].shape
        model = self.folder / shape
        model.mkdir(exist_ok=True)
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6,
            "initializer_range": 0.02, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": 0, "dtype": options.dtype, "use_cache": True,
            "head_dim": SHAPES[shape]["hidden_size"] // SHAPES[shape]["num_attention_heads"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            **SHAPES[shape],
        }  # fmt: skip
        (model / "config.json").write_text(json.dumps(config))
        job = {
            "side": side, "cases": [asdict(case) for case in cases], "model": str(model),
            "shape": SHAPES[shape], "out": str(options.out), "device": options.device,
            "dtype": options.dtype, "repeats": options.repeats, "eager": options.eager,
            "utilization": options.utilization, "backend": options.attention_backend,
            "memory": options.memory, "adapters": str(self.folder / "adapters"),
        }  # fmt: skip
        path = self.folder / "job.json"
        path.write_text(json.dumps(job))
        return path

    def _process(self, side: str, job: Path, limit: float) -> str:
        """Run one side's process; what to say of it where it left no result."""
        if side == "ours":
            words, environment = [sys.executable, str(HERE / "ours_vllm.py"), str(job)], {}
        else:
            words = [self.options.python, str(HERE / "reference_vllm.py"), str(job)]
            environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(not self.options.in_process))}
            if self.options.python_path:
                environment["PYTHONPATH"] = paths_of(self.options.python_path)
        with self.log.open("ab") as log:
            log.write(f"=== {SIDES[side]}: {job.read_text()}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=os.environ | environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
                return f"the process ended with {code} and left no result; see {self.log}"
            except subprocess.TimeoutExpired:
                return f"not done after {limit:.0f} s; see {self.log}"
            finally:
                end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started, which would hold the GPU's memory."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and alive(process):
            time.sleep(0.1)
    process.wait(10)


def alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether anything of a process's group is left."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def paths_of(folder: Path) -> str:
    """A search path that begins with a folder."""
    return os.pathsep.join(filter(None, (str(folder.resolve()), os.environ.get("PYTHONPATH"))))


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of results; none where there is no file."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def told(line: dict[str, Any], floor: float) -> str:
    """A case's result in words."""
    if "error" in line:
        return f"FAILED: {line['error']}"
    runs = ", ".join(f"{seconds:.3f}" for seconds in line["runs"])
    return (
        f"{line['tokens'] / line['seconds']:,.0f} tokens/s (median of {runs} s), "
        f"{line['seconds'] / floor:.2f} times the floor"
    )


def rows(lines: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[list[str]]:
    """The table's rows: the last result of each case and side, of the last sizes."""
    started: dict[tuple[str, str], float] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    sizes: dict[str, Any] = {}
    for line in lines:
        if line.get("event") == "start":
            started |= {(line["side"], name): line["start_seconds"] for name in line["cases"]}
        elif "seconds" in line and "sizes" in line:
            found[line["side"], line["case"]] = line
            sizes[line["case"]] = line["sizes"]
    for name in (name for name in CASES if name in sizes):
        case = Case(**sizes[name])
        both = [found.get((side, name), {}) for side in SIDES]
        both = [line if line.get("sizes") == sizes[name] else {} for line in both]
        rates = [line["tokens"] / line["seconds"] if line else None for line in both]
        asked = case.sequences * case.new
        marks = ["" if line.get("tokens", asked) == asked else "!" for line in both]
        ours, theirs = rates
        least = asked / floor_of(case, options)
        yield [
            name,
            *(number(rate, ",.0f") + mark for rate, mark in zip(rates, marks, strict=True)),
            number(ours / theirs if ours and theirs else None, ".2f"),
            number(least, ",.0f"),
            *(number(least / rate if rate else None, ".2f") for rate in rates),
            *(number(started.get((side, name)), ".1f") for side in SIDES),
            *(number(line.get("update_seconds"), ".2f") for line in both),
            *(f"{gib(line, 'planned_bytes')}/{gib(line, 'peak_bytes')}" for line in both),
        ]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def gib(line: dict[str, Any], key: str) -> str:
    """Bytes of a result in GiB."""
    value = line.get(key)
    return f"{value / 2**30:.1f}" if value else "-"


HEADS = (
    ("case", ""), ("ours", "tokens/s"), ("vLLM", "tokens/s"), ("ours/", "vLLM"),
    ("floor", "tokens/s"), ("ours:", "x floor"), ("vLLM:", "x floor"), ("ours:", "start s"),
    ("vLLM:", "start s"), ("ours:", "change s"), ("vLLM:", "change s"),
    ("ours: GiB", "plan/peak"), ("vLLM: GiB", "plan/peak"),
)  # fmt: skip


def show_table(table: list[list[str]], options: argparse.Namespace) -> None:
    """Print rows below two lines of heads."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(
        f"\n{options.out}: floor at {options.bandwidth / 1e12:g} TB/s and "
        f"{options.operations / 1e12:g} TFLOP/s; start: weights drawn and an engine made, after "
        "the imports; change: of all adapters, ours by a train step, vLLM's by writing and loading "
        "files; GiB: planned and peak; !: not all tokens came"
    )
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def show(options: argparse.Namespace) -> None:
    """Print the table of a file of results."""
    lines = read(options.out)
    found = list(rows(lines, options))
    if found:
        show_table([list(row) for row in zip(*HEADS, strict=True)] + found, options)
    else:
        print(f"\n{options.out}: nothing was measured")
    failed: dict[tuple[str, str], str] = {}
    for line in lines:
        if "error" in line and line.get("event") != "failed":  # which its cases say too
            failed[line["side"], line.get("case", "weights")] = line["error"]
        elif "case" in line:
            failed.pop((line["side"], line["case"]), None)
    for (side, name), error in failed.items():
        print(f"{name}, {SIDES[side]}: {error}")


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The chosen cases, in the sizes that were asked for."""
    found = []
    for name in options.cases or CASES:
        case = CASES[name]
        if options.shape:
            case = replace(case, shape=options.shape)
        times = case.prompt // 128
        if options.prompt_tokens:
            case = replace(case, prompt=times * options.prompt_tokens)
        if options.new_tokens:
            case = replace(case, new=options.new_tokens)
        most = options.most_sequences or case.sequences
        while case.sequences > most and case.samples > 1:
            case = replace(
                case, questions=max(1, case.questions // 2), samples=max(1, case.samples // 2)
            )
        case = replace(case, questions=min(case.questions, most))
        found.append(case)
    return found


def refuse(text: str) -> NoReturn:
    """End with a sentence."""
    print(f"vllm.py: {text}", file=sys.stderr)
    sys.exit(2)


def check_reference(options: argparse.Namespace) -> None:
    """Say at once where vLLM is not to be had."""
    code = (
        "import importlib.util as u, importlib.metadata as m\n"
        "if u.find_spec('vllm') is None: raise SystemExit(3)\n"
        "try: print(m.version('vllm'))\n"
        "except m.PackageNotFoundError: print('of unknown version')"
    )
    environment = dict(os.environ)
    if options.python_path:
        environment["PYTHONPATH"] = paths_of(options.python_path)
    try:
        done = subprocess.run(
            [options.python, "-c", code], env=environment, cwd=tempfile.gettempdir(),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except OSError as error:
        refuse(f"--python {options.python} cannot be run ({error.strerror}).")
    if done.returncode:
        refuse(
            f"vLLM is not installed for {options.python}; name an interpreter that has it "
            "with --python (or its folder with --python-path), or measure our side alone with "
            "--ours."
        )
    print(f"vLLM {done.stdout.strip()} of {options.python}", flush=True)


def check_device(options: argparse.Namespace) -> None:
    """Find the GPU without a CUDA context of this process's own, which would take its memory."""
    options.memory = 0
    if options.device == "cpu":
        print("CPU: the floor and the ratios to it say nothing here", flush=True)
        return
    words = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    try:
        line = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        refuse("no GPU was found (nvidia-smi); take --device cpu --shape tiny.")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    gpu = line.splitlines()[int(first) if first.isdigit() else 0]
    options.memory = int(gpu.split(",")[1].split()[0]) * 2**20
    print(f"{gpu} taken by others", flush=True)


def arguments() -> argparse.Namespace:
    """Options, checked as far as can be without a model."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--ours", action="store_true", help="our side alone")
    side.add_argument("--reference", action="store_true", help="vLLM's side alone")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="these alone")
    parser.add_argument("--out", type=Path, help="where results are added")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a file")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, of which the median")
    parser.add_argument("--limit", type=float, default=300, help="most seconds of a process")
    parser.add_argument("--budget", type=float, help="most seconds of all: no process after that")
    parser.add_argument("--together", action="store_true", help="one process a shape")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vLLM")
    parser.add_argument("--python-path", type=Path, metavar="DIR", help="packages for it alone")
    parser.add_argument("--utilization", type=float, default=0.92, help="of memory, for vLLM")
    parser.add_argument("--attention-backend", help="of vLLM; FLASH_ATTN, say (its own choice)")
    parser.add_argument("--in-process", action="store_true", help="vLLM's engine in its caller")
    parser.add_argument("--eager", action="store_true", help="vLLM without graphs and compiler")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), help="in place of the cases' own")
    parser.add_argument("--prompt-tokens", type=int, help="in place of 128 (four times in samples)")
    parser.add_argument("--new-tokens", type=int, help="in place of 256")
    parser.add_argument("--most-sequences", type=int, help="larger cases are made smaller")
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes/s of the floor")
    parser.add_argument("--operations", type=float, default=700e12, help="FLOP/s of the floor")
    options = parser.parse_args()
    if options.shape == "tiny":
        options.prompt_tokens = options.prompt_tokens or 16
        options.new_tokens = options.new_tokens or 8
        options.most_sequences = options.most_sequences or 16
    for name in ("repeats", "prompt_tokens", "new_tokens", "most_sequences", "limit"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} is less than 1")
    options.dtype = "bfloat16" if options.device == "cuda" else "float32"
    if options.out is None:
        options.out = Path("outputs") / time.strftime("vllm-%Y%m%d-%H%M%S.jsonl")
    return options


def stop(number: int, frame: FrameType | None) -> None:
    """End as at Ctrl-C, so that the process under way is ended and the table is printed."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure both sides of each case, and print the table."""
    options = arguments()
    if options.show:
        options.out = options.show
        if not read(options.out):
            refuse(f"{options.out} holds no results.")
        show(options)
        return 0
    sides = [side for side in SIDES if not (options.ours or options.reference)]
    sides = sides or ["ours" if options.ours else "reference"]
    check_device(options)
    if "reference" in sides:
        check_reference(options)
    options.out = options.out.resolve()
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.touch()
    except OSError as error:
        refuse(f"--out {options.out} cannot be written ({error.strerror}).")
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases_of(options):
        key = tuple(map(str, case.group)) if options.together else (case.name,)
        groups.setdefault(key, []).append(case)
    signal.signal(signal.SIGTERM, stop)
    stopped = False
    memory = Path("/dev/shm")  # so that no disk is timed where adapters are written
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        runner = Runner(options, Path(place))
        try:
            for group in groups.values():
                for side in sides:
                    runner.run(side, group)
        except KeyboardInterrupt:
            stopped = True
            print("stopped; what was measured is on disk", flush=True)
    show(options)
    return 130 if stopped else int(runner.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
