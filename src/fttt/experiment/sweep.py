"""A grid of runs in one process: methods x tasks x seeds x settings on one model.

Runs that start from different fine-tuned checkpoints of it have one after the other in memory.
"""

from __future__ import annotations

import gc
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from fttt.config import EngineSection, RunConfig, build, merge
from fttt.errors import UsageError
from fttt.experiment.executor import Executor
from fttt.experiment.plan import MAY_DIFFER, Settled, leaves, plan_resume, plan_run, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.files import cannot_write, file_name, is_a_file, write_whole
from fttt.finetune.metadata import read_info
from fttt.methods import find_method
from fttt.progress import Progress
from fttt.store import Run, solved_within

__all__ = [
    "DEMO",
    "Evaluated",
    "Grid",
    "SweepConfig",
    "evaluated",
    "evaluation",
    "recipe",
    "run_sweep",
]

GRID_FILE = "sweep.toml"


class SweepConfig(BaseModel):
    """A sweep's file. An entry of a list is a name, or a table of settings with that name in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="methods; a table has 'method', its settings, and a 'label'"
    )
    tasks: tuple[str | dict[str, Any], ...] = Field(
        ("arithmetic",), min_length=1, description="tasks; a table has 'task' and settings"
    )
    seeds: tuple[int, ...] = Field((42,), min_length=1, description="seeds")
    vary: tuple[dict[str, Any], ...] = Field(
        ({},), min_length=1, description="tables of settings, each with a 'label' if several"
    )
    hard_only: bool = Field(
        False, description="run greedy first and ask the other methods only what it failed"
    )
    hard_limit: int | None = Field(
        None, ge=1, description="with hard_only: at most this many hard questions a task"
    )
    base: dict[str, Any] = Field(
        default_factory=dict, description="settings that all runs share, as in a recipe"
    )


@dataclass(frozen=True)
class Place:
    """One run of the grid before its questions are known."""

    name: str
    settled: Settled
    group: str
    """Task and variation: what a greedy run is shared by."""

    @property
    def config(self) -> RunConfig:
        """The settings."""
        return self.settled.config


class Grid:
    """The runs of a sweep, each in a folder of its own under one folder."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        """Lay the grid out.

        Raises:
            UsageError: a setting that does not exist, or two runs of one name.
        """
        self.config = config
        self.folder = folder
        self.places = self._places()

    @property
    def engine(self) -> EngineSection:
        """Where the runs' questions are asked."""
        return self.places[0].config.engine

    def by_weights(self) -> list[list[Place]]:
        """Places that share a model's weights; those whose greedy runs others wait for come first.

        The greedy runs of a sweep of hard questions are the first of their list.
        """
        groups: dict[Path | None, list[Place]] = {}
        for place in self.places:
            groups.setdefault(place.config.adapter, []).append(place)
        ordered = [sorted(places, key=self.decides, reverse=True) for places in groups.values()]
        return sorted(ordered, key=lambda places: self.decides(places[0]), reverse=True)

    def decides(self, place: Place) -> bool:
        """Whether the run says which questions are hard."""
        return self.config.hard_only and place.config.method == "greedy"

    def _places(self) -> list[Place]:
        places: dict[str, Place] = {}
        for vary in self.config.vary:
            for task in self.config.tasks:
                for method in self._methods():
                    once = _draws_nothing(_name(method, "method"))
                    for seed in self.config.seeds[:1] if once else self.config.seeds:
                        place = self._place(method, task, seed, vary, one_seed=once)
                        if place.name in places:
                            raise UsageError(
                                f"Two runs of the sweep are called {place.name!r}; give their "
                                "tables in methods, tasks or vary a 'label' each."
                            )
                        places[place.name] = place
        self._check_replicas(list(places.values()))
        configs = [place.config for place in places.values()]
        models = {" at ".join(filter(None, (one.model, one.endpoint))) for one in configs}
        if len(models) > 1:
            raise UsageError(
                f"A sweep loads one model, not {', '.join(sorted(models))}; "
                "write one sweep for each."
            )
        return list(places.values())

    @staticmethod
    def _check_replicas(places: Sequence[Place]) -> None:
        engines = [place.config.engine for place in places]
        if len({(e.replicas, e.gpus_per_replica, e.ray_address) for e in engines}) > 1:
            raise UsageError(
                "The runs of a sweep share the replicas; give replicas, gpus_per_replica and "
                "ray_address once, in base.engine or by --replicas, --gpus-per-replica and "
                "--ray-address."
            )

    def _methods(self) -> list[str | dict[str, Any]]:
        methods = list(self.config.methods)
        if self.config.hard_only and "greedy" not in [_name(m, "method") for m in methods]:
            methods.insert(0, "greedy")
        return methods

    def _place(
        self,
        method: str | dict[str, Any],
        task: str | dict[str, Any],
        seed: int,
        vary: dict[str, Any],
        *,
        one_seed: bool,
    ) -> Place:
        values: dict[str, Any] = {**self.config.base, "seed": seed}
        for entry, key in ((task, "task"), (vary, ""), (method, "method")):
            table = {key: entry} if isinstance(entry, str) else dict(entry)
            table.pop("label", None)
            values = merge(values, table)
        settled = settle(build(RunConfig, values, "the sweep"))
        group = [_label(task, "task"), *([vary["label"]] if "label" in vary else [])]
        parts = [_label(method, "method"), *group, *([] if one_seed else [f"s{seed}"])]
        return Place(file_name(*parts), settled, "-".join(group))

    def cell(self, place: Place, hard: Mapping[str, Sequence[str]]) -> Cell:
        """The place with its questions: a new run, or the one that its folder holds.

        Args:
            hard: ids of the hard questions by group, in a sweep of hard questions only.

        Raises:
            UsageError: the folder's run was made by other settings.
        """
        folder = self.folder / place.name
        settled, config = place.settled, place.config
        if place.group in hard and config.method != "greedy":
            ids = list(hard[place.group])[: self.config.hard_limit]
            over = {"data": {"questions": ids}}
            kept = config.to_toml()
            kept["data"].pop("limit", None)
            settled = replace(settled, config=build(RunConfig, merge(kept, over), "the sweep"))
        if (folder / "config.toml").is_file():
            values = settled.config.to_toml()
            return Cell(plan_resume(Run.open(folder), values), folder, resume=True)
        return Cell(plan_run(settled), folder)


def run_sweep(
    config: SweepConfig,
    folder: Path,
    load: Callable[[RunConfig], Executor],
    progress: Progress,
) -> list[Run]:
    """Run what is owed of a sweep; return all its runs.

    Args:
        folder: where its runs lie; a folder of the same sweep is resumed.
        load: loads the model of a config where questions are asked, once it is needed.

    Raises:
        UsageError: the sweep or its folder is wrong, before a model is loaded.
        RunError: a run failed.
    """
    grid = Grid(config, folder)
    for place in grid.places:
        place.settled.check_model()  # all of them, before the first model is loaded
    _check_folder(grid)
    runs: dict[str, Run] = {}
    hard: dict[str, list[str]] = {}
    for places in grid.by_weights():
        executor: Executor | None = None
        for stage in _stages(places, grid.decides):
            cells = {p.name: grid.cell(p, hard) for p in stage if not _nothing_hard(p, hard)}
            owed = {name: cell for name, cell in cells.items() if not _finished(cell)}
            for note in dict.fromkeys(n for cell in owed.values() for n in cell.plan.notes):
                progress.note(note)
            if owed:
                _claim(grid)
                executor = executor or load(places[0].config)
                ran = run_cells(list(owed.values()), executor, progress)
                runs.update(zip(owed, ran, strict=True))
            for place in stage:
                if place.name in cells and place.name not in runs:
                    runs[place.name] = Run.open(cells[place.name].folder)
                if grid.decides(place):
                    hard[place.group] = _unsolved(runs[place.name])
        if executor is not None:
            executor = None
            gc.collect()  # what an engine held must be free before the next weights come
    return [runs[place.name] for place in grid.places if place.name in runs]


def _stages(
    places: Sequence[Place], first: Callable[[Place], bool]
) -> tuple[list[Place], list[Place]]:
    return [p for p in places if first(p)], [p for p in places if not first(p)]


def _check_folder(grid: Grid) -> None:
    """Refuse a folder that is another sweep's, or holds what is no sweep."""
    path = grid.folder / GRID_FILE
    try:
        if grid.folder.is_file():
            raise is_a_file(grid.folder)
        foreign = not path.is_file() and grid.folder.is_dir() and _others(grid.folder)
        if foreign:
            raise UsageError(
                f"The folder {str(grid.folder)!r} holds other things ({foreign[0]}) and no sweep "
                "that could be resumed; choose another --out."
            )
        if path.is_file() and _drawn(path.read_text(encoding="utf-8")) != _drawn(_content(grid)):
            raise UsageError(
                f"The folder {str(grid.folder)!r} holds another sweep than the one asked for; "
                "choose another --out."
            )
    except ValueError as error:  # half written, or not ours
        raise UsageError(
            f"The file {str(path)!r} cannot be read: {error}; remove it if the folder's runs are "
            "those of this sweep, or choose another --out."
        ) from None
    except OSError as error:
        raise cannot_write(grid.folder, error) from error


def _others(folder: Path) -> list[str]:
    """What a folder holds beside a sweep's beginning that was killed."""
    return sorted(p.name for p in folder.iterdir() if p.name != f"{GRID_FILE}.partial")


def _claim(grid: Grid) -> None:
    """Make the folder this sweep's, once it is known that nothing is refused."""
    path = grid.folder / GRID_FILE
    try:
        if not path.is_file():
            grid.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, _content(grid))
    except OSError as error:
        raise cannot_write(grid.folder, error) from error


def recipe(grid: Grid) -> str:
    """A sweep's file with all defaults filled in, and above it the runs that it makes.

    Raises:
        UsageError: a model that does not exist, or does not go with a method.
    """
    for place in grid.places:
        place.settled.check_model()
    hard = "what greedy decoding fails" if grid.config.hard_only else "all questions"
    runs = []
    for place in grid.places:
        asks, trials = "all questions" if grid.decides(place) else hard, place.config.budget.trials
        budget = "as its budget allows" if trials is None else f"{trials} trials each"
        runs.append(f"#   {place.name}: {asks}, {'1 trial each' if trials == 1 else budget}\n")
    return f"# {len(runs)} runs:\n{''.join(runs)}{_content(grid)}"


def _content(grid: Grid) -> str:
    return tomli_w.dumps(grid.config.model_dump(mode="json", exclude_none=True))


def _drawn(content: str) -> dict[str, Any]:
    """What a sweep's file says of what is drawn."""
    found = dict(leaves(tomllib.loads(content)))
    return {key: v for key, v in found.items() if key.removeprefix("base.") not in MAY_DIFFER}


def _unsolved(run: Run) -> list[str]:
    return [r.question.id for r in run.records if not solved_within(r.trials)]


def _nothing_hard(place: Place, hard: Mapping[str, Sequence[str]]) -> bool:
    """Whether greedy solved every question that this run would ask."""
    return place.config.method != "greedy" and hard.get(place.group) == []


def _finished(cell: Cell) -> bool:
    if not cell.resume:
        return False
    run = Run.open(cell.folder)
    return run.finished and not run.lost


def _draws_nothing(method: str) -> bool:
    """Whether every seed would repeat the same run."""
    return find_method(method).fixed.get("temperature") == 0


def _name(entry: str | Mapping[str, Any], key: str) -> str:
    return entry if isinstance(entry, str) else str(entry.get(key, ""))


def _label(entry: str | Mapping[str, Any], key: str) -> str:
    return entry if isinstance(entry, str) else str(entry.get("label", entry.get(key, "")))


# ---- the sweep that evaluates fine-tuned checkpoints

SAMPLES = "finetuned"
KEPT = 0.9
"""Share of a trained change that merged weights should hold."""


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's runs."""

    greedy: Run
    """On all questions."""
    samples: Run | None
    """On the hard ones; ``None`` where greedy decoding solved every question."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What ``environment.json`` says of the checkpoint and its training."""
        facts: Mapping[str, Any] = self.greedy.environment["adapter"]
        return facts

    @property
    def note(self) -> str | None:
        """A warning that the evaluated weights hold too little of what was trained."""
        kept = self.facts.get("change_kept", 1.0)
        if kept >= KEPT:
            return None
        return (
            f"In {self.greedy.environment['dtype']} the weights hold {100 * kept:.0f} % of the "
            f"change trained in {self.facts['folder']}; --dtype float32 holds all of it."
        )


def evaluation(
    checkpoints: Sequence[Path], base: Mapping[str, Any], *, hard_limit: int | None = None
) -> SweepConfig:
    """The sweep that evaluates checkpoints, one after the other.

    Args:
        checkpoints: folders that ``fttt finetune train`` wrote.
        base: settings of all runs, as a recipe has them; without ``task``, the one that the
            checkpoints were trained on. Where ``data.skip_cases`` is given, the hard questions are
            those that it does not name; else those that the checkpoint's own greedy decoding
            fails.
        hard_limit: at most this many hard questions.

    Raises:
        UsageError: a folder is no checkpoint, the task is not clear, or they have several base
            models.
    """
    tasks = dict.fromkeys(read_info(folder).task for folder in checkpoints)
    if "task" not in base and len(tasks) > 1:
        raise UsageError(
            f"The checkpoints were trained on {', '.join(tasks)}; say with --task on which "
            "questions all of them are to be evaluated."
        )
    models = dict.fromkeys(read_info(folder).model for folder in checkpoints)
    if "model" not in base and len(models) > 1:
        raise UsageError(
            f"The checkpoints were trained from {' and '.join(map(repr, models))}, and one "
            "evaluation loads one base model; evaluate those of each model on their own."
        )
    base = merge({"task": next(iter(tasks)), "save_correct_cases": False}, base)
    data = dict(base.get("data", {}))
    cases = data.pop("skip_cases", None)
    samples: dict[str, Any] = {"method": SAMPLES}
    if cases is not None:
        if hard_limit is not None:
            raise UsageError(
                "--hard-limit cannot be combined with --skip-cases; choose the hard questions by "
                "one of them."
            )
        samples["data"] = {"skip_cases": cases}
    return build(
        SweepConfig,
        {
            "methods": ["greedy", samples],
            "tasks": [base.pop("task")],
            "seeds": [base.pop("seed", 42)],
            "vary": [
                {"label": label, "adapter": str(folder)}
                for label, folder in zip(_short_names(checkpoints), checkpoints, strict=True)
            ],
            "hard_only": cases is None,
            "hard_limit": hard_limit,
            "base": {**base, "data": data},
        },
        "the evaluation",
    )


def evaluated(runs: Sequence[Run]) -> list[Evaluated]:
    """The runs of an evaluation, by checkpoint."""
    samples = {run.adapter: run for run in runs if run.method == SAMPLES}
    return [Evaluated(run, samples.get(run.adapter)) for run in runs if run.method == "greedy"]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Short names, each its own: a folder's, or as much of its path as tells it apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("A checkpoint is named twice; name each one once.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["-".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels


# ---- the demo's sweep: a small model that learns from scores, in minutes on two processors

DEMO = build(
    SweepConfig,
    {
        "methods": [
            "best-of-n",
            {
                "method": "policy",
                "settings": {
                    "shared": True, "group": 8, "ahead": 0, "advantage": "grpo", "lr": 1e-3,
                },
            },
        ],
        "tasks": ["optimise/packing"],
        "base": {
            "model": "smollm2-135m",
            "save_correct_cases": False,
            "data": {"limit": 8},
            "budget": {"trials": 40},
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24},
            "engine": {"batch_size": 64},
        },
    },
    "the demo",
)  # fmt: skip
"""The frozen model drawn again at its best temperature, and one adapter that learns from scores;
``benchmarks/graded_demo.py`` shows that it holds over five seeds."""
