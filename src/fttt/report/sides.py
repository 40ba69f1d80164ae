"""The sides of a comparison: runs of one method with one set of settings, whatever their seeds.

Which runs make a side, what it is called, and which sides may be compared.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fttt.errors import UsageError
from fttt.report.outcomes import Axis, Outcomes
from fttt.store import Run, fingerprint

__all__ = [
    "Side",
    "check_distinct",
    "check_finished",
    "check_rules",
    "form_sides",
    "model_names",
    "set_aside",
    "shared_questions",
    "side_labels",
]

OUTER_SETTINGS = frozenset(
    {"seed", "save_correct_cases", "data_dir", "split", "limit", "questions", "skip_cases"}
    | {"device", "batch_size", "memory_share", "max_length"}
    | {"endpoint", "concurrency", "request_timeout"}
    | {"replicas", "gpus_per_replica", "ray_address"}
)
"""Settings that do not change what a method is: which questions, which machine, which seed."""
RULE_SETTINGS = frozenset(
    {"unanswered", "until", "temperature", "top_p", "max_new_tokens", "prompt", "prompt_style"}
    | {"top_k", "min_p", "repetition_penalty"}
)
"""Settings that make a trial or a verdict mean something else: two sides must share them. So must
they share all options of the task, its verifier among them."""
SAMPLING_SETTINGS = frozenset({"temperature", "top_p", "top_k", "min_p"})
DETERMINISTIC_METHODS = frozenset({"greedy", "beam-search"})
"""Methods that draw nothing, so that the run's sampling settings do not touch them."""

CENSORED_SHARE = 0.05
"""Share of a run's questions that may have run out of trials before an observed budget."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """One side: its runs (one a seed) on the same questions."""

    label: str
    runs: tuple[Run, ...]
    ids: tuple[str, ...]

    @cached_property
    def outcomes(self) -> tuple[Outcomes, ...]:
        """One a run, on this side's questions."""
        return tuple(Outcomes.of(run).at(self.ids) for run in self.runs)

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def budget(self) -> int | None:
        """Trials granted to each question; ``None`` where tokens or seconds were the budget."""
        return self.runs[0].trial_budget

    @cached_property
    def unfinished(self) -> bool:
        """Whether a question of it still owes trials, so that its granted budget was not given."""
        return any(not set(self.ids).isdisjoint(run.owed) for run in self.runs)

    def values(self, axis: Axis, budgets_B: ArrayLike) -> Floats:
        """Share of the seeds that solved each question within each budget, shape QB."""
        per_seed = [outcomes.within(axis, budgets_B) for outcomes in self.outcomes]
        mean_QB: Floats = np.mean(per_seed, axis=0, dtype=np.float64)
        return mean_QB

    def observed(self, axis: Axis) -> float:
        """The largest budget that nearly every question of every seed was really given.

        Past it more than 5 % of a run's questions had run out of trials unsolved, and nobody
        knows what more would have done.
        """
        limits = []
        for outcomes in self.outcomes:
            ended = np.sort(outcomes.spent[axis][~outcomes.solved])
            spare = int(CENSORED_SHARE * len(self.ids))
            everything = float(outcomes.spent[axis].max())
            limits.append(float(ended[spare]) if len(ended) > spare else everything)
        return min(limits)


def form_sides(runs: Sequence[Run], ids: Sequence[str] | None = None) -> list[Side]:
    """Pool runs that differ in nothing but the seed; each side gets a name that tells it apart.

    ``ids`` restricts every side to these questions; without it each has those that all its runs
    have finished.

    Raises:
        UsageError: a side has no finished question.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps([run.method, _identity(run)], sort_keys=True, default=str)].append(run)
    sides: list[tuple[Run, ...]] = []
    for group in groups.values():
        repeated = len({run.seed for run in group}) < len(group)
        if repeated or not _same_questions(group):
            sides.extend((run,) for run in group)
        else:
            sides.append(tuple(sorted(group, key=lambda run: run.seed)))
    labels = side_labels(sides)
    return [
        Side(label, side, tuple(ids) if ids is not None else _finished(side))
        for label, side in zip(labels, sides, strict=True)
    ]


def check_distinct(runs: Sequence[Run]) -> None:
    """Refuse a run that is named twice, by whatever path.

    Raises:
        UsageError: two runs are one folder.
    """
    seen = set()
    for run in runs:
        place = run.path.resolve()
        if place in seen:
            raise UsageError(f"The run {str(run.path)!r} is named twice; name each run once.")
        seen.add(place)


def check_finished(runs: Sequence[Run]) -> None:
    """Refuse runs that were cut off.

    Raises:
        UsageError: a question of a run still owes trials, or has lost some.
    """
    for run in runs:
        if run.lost:
            raise UsageError(f"{run.loss}, or add --intersection to use the rest.")
        if run.owed:
            raise UsageError(
                f"The run {str(run.path)!r} is unfinished: {len(run.owed)} of its "
                f"{len(run.questions)} questions still owe trials; resume it by "
                f"`fttt run --resume {run.path}`, or add --intersection to use the rest, or "
                "--trials to use what every question has had."
            )


def shared_questions(runs: Sequence[Run], intersection: bool) -> tuple[list[str], list[str]]:
    """Ids of the questions that every run has, the same in prompt and gold, and what to say.

    Raises:
        UsageError: the runs differ in their questions and no intersection was asked for, or
            nothing is shared.
    """
    digests = [_digests(run) for run in runs]
    shared = [i for i, digest in digests[0].items() if all(d.get(i) == digest for d in digests[1:])]
    every = {pair for digest in digests for pair in digest.items()}
    if not intersection:
        check_finished(runs)
        if len(every) != len(shared):
            raise UsageError(
                f"The runs are not on the same questions: {len(shared)} are shared of "
                f"{len(every)} in all (by id and by the sha256 of prompt and gold); compare "
                "runs on the same questions, or add --intersection to use the shared ones."
            )
    excluded = {i for run in runs for i in (*run.owed, *run.lost)}
    kept = [i for i in shared if i not in excluded]
    if not kept:
        raise UsageError(
            "The runs share no finished question (by id and by the sha256 of prompt and gold), "
            "so there is nothing to compare; name runs on the same questions."
        )
    dropped = len(every) - len(kept)
    if not dropped:
        return kept, []
    return kept, [
        f"Compared on the intersection: {len(kept)} questions that every run has finished, "
        f"of {len(every)} in all."
    ]


def set_aside(runs: Sequence[Run]) -> tuple[list[Run], list[Run], list[str]]:
    """Part the greedy runs that say which questions are hard from the runs that asked these.

    A greedy run has chosen another's questions where it failed all of them and asked more. It is no
    side of theirs: by their choice it solves none of them.

    Returns:
        The runs that have chosen, all others, and what to say of it.
    """
    failed = {
        n: {r.question.id: fingerprint(r.question) for r in run.records if not r.solved}
        for n, run in enumerate(runs)
        if run.method == "greedy"
    }
    asked = [_digests(run).items() for n, run in enumerate(runs) if n not in failed]
    choosing = [
        n
        for n, hard in failed.items()
        if len(hard) < len(runs[n].questions) and any(ids <= hard.items() for ids in asked)
    ]
    notes = []
    for n in choosing:
        solved, every = len(runs[n].questions) - len(failed[n]), len(runs[n].questions)
        notes.append(
            f"Greedy decoding ({runs[n].path.name}) solved {solved} of {every} questions; others "
            "were asked only what it failed, so their figures speak of these hard questions, and "
            "it is held against none of them."
        )
    others = [run for n, run in enumerate(runs) if n not in choosing]
    return [runs[n] for n in choosing], others, notes


def check_rules(runs: Sequence[Run], allow: Sequence[str]) -> list[str]:
    """Hold the runs' task, model and rules against each other; allowed differences become notes.

    Raises:
        UsageError: they differ in something that ``allow`` does not name.
    """
    notes = []
    rules = [_rules(run) for run in runs]
    for rule, name in zip(rules, model_names(runs), strict=True):
        rule["model"] = name
    names = {name for rule in rules for name in rule}
    for name in sorted(names, key=lambda n: (n != "task", n != "model", n)):  # the plainest first
        deciding = [
            (run, rule.get(name))
            for run, rule in zip(runs, rules, strict=True)
            if not (name in SAMPLING_SETTINGS and run.method in DETERMINISTIC_METHODS)
        ]
        for run, value in deciding[1:]:
            if value == deciding[0][1]:
                continue
            difference = (
                f"{name} is {show(deciding[0][1])} in {deciding[0][0].path.name!r} "
                f"and {show(value)} in {run.path.name!r}"
            )
            if name not in allow:
                raise UsageError(
                    f"The runs do not follow the same rules: {difference}; compare runs that "
                    f"share it, or add --allow {name} to compare them all the same."
                )
            notes.append(f"The sides differ by more than the method: {difference}.")
            break
    return notes + _weights(runs)


def _weights(runs: Sequence[Run]) -> list[str]:
    """Where the runs started from different weights of their model: from which."""
    if len({run.adapter for run in runs}) == 1:
        return []
    starts = [
        f"{run.path.name!r} from {'the model itself' if run.adapter is None else run.adapter}"
        for run in runs
    ]
    return [f"The sides start from different weights: {', '.join(starts)}."]


def _rules(run: Run) -> dict[str, Any]:
    """What two runs must share for a difference to be the method's."""
    rules = {key: value for key, value in _leaves(run.config) if key in RULE_SETTINGS}
    options = dict(_leaves(run.config.get("data", {}).get("options", {})))
    facts = {"task": run.task, "unanswered": run.unanswered}
    return {**rules, **options, **facts}


def model_names(runs: Sequence[Run]) -> list[str]:
    """What each run's model is called: one name for one content, by whatever path it was given.

    Where folders of one name hold other content, part of its SHA-256 is in the name. The content of
    a model of the hub is not known.
    """
    name_of: dict[str, str] = {}
    contents = [str(run.environment.get("model_content", "")) for run in runs]
    for run, content in zip(runs, contents, strict=True):
        if content:
            name_of.setdefault(content, run.model)
    several = {name for name, times in Counter(name_of.values()).items() if times > 1}
    names = [name_of.get(content, run.model) for run, content in zip(runs, contents, strict=True)]
    return [
        f"{name} (sha256 {content[:8] or 'unknown'})" if name in several else name
        for name, content in zip(names, contents, strict=True)
    ]


def _identity(run: Run) -> dict[str, Any]:
    """The settings of a run that make it another side."""
    return {key: value for key, value in _leaves(run.config) if key not in OUTER_SETTINGS}


def side_labels(sides: Sequence[tuple[Run, ...]]) -> list[str]:
    """A name for each side: its own, or by method and settings; its folder's where none is it."""
    first = [side[0] for side in sides]
    own = [run.config.get("name") for run in first]
    settings = [{k: v for k, v in _identity(run).items() if k != "name"} for run in first]
    told = name_sides([run.method for run in first], settings)
    names = [
        mine if mine is not None and own.count(mine) == 1 else name
        for mine, name in zip(own, told, strict=True)
    ]
    return [
        run.path.name if name is None or names.count(name) > 1 else name
        for name, run in zip(names, first, strict=True)
    ]


def _digests(run: Run) -> dict[str, str]:
    return {question.id: fingerprint(question) for question in run.questions}


def _finished(side: Sequence[Run]) -> tuple[str, ...]:
    """Ids of the questions that all runs of a side have finished."""
    owed = {i for run in side for i in (*run.owed, *run.lost)}
    ids = tuple(i for i in _digests(side[0]) if i not in owed)
    if not ids:
        raise UsageError(
            f"The run {str(side[0].path)!r} has no finished question, so there is nothing to "
            f"report; resume it by `fttt run --resume {side[0].path}`."
        )
    return ids


def _same_questions(runs: Sequence[Run]) -> bool:
    first = _digests(runs[0])
    return all(_digests(run) == first for run in runs[1:])


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of a nested configuration by its own name."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


PATHS = frozenset({"checkpoint", "adapter"})
"""Settings whose values are folders."""
LONGEST = 40


def name_sides(methods: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """A name for each side, or ``None`` where method and settings tell it from no other.

    Args:
        methods: by side.
        settings: by side, those that make it what it is.
    """
    names: list[str | None] = []
    for method, own in zip(methods, settings, strict=True):
        twins = [s for m, s in zip(methods, settings, strict=True) if m == method and s is not own]
        differing = [key for key in own if any(twin.get(key) != own[key] for twin in twins)]
        if "checkpoint" in differing and own.get("adapter") == own["checkpoint"]:
            differing.remove("adapter")  # the same folder, by its other name
        told = ", ".join(_told(key, [own, *twins]) for key in differing)
        if len(differing) == 1 and all(_is_path(differing[0], s) for s in [own, *twins]):
            told = _value(differing[0], [own, *twins])  # a folder needs no name of its setting
        names.append((f"{method} ({told})" if told else None) if twins else method)
    # Two sides may still share a name: settings that only the other has, texts that were cut.
    times = Counter(names)
    return [None if times[name] > 1 else name for name in names]


def shorten_paths(paths: Iterable[str]) -> dict[str, str]:
    """Each path without the leading and trailing parts that all of them share.

    At least one part of each stays.
    """
    split = {path: PurePath(path).parts for path in paths}
    shortest = min(map(len, split.values()))
    leading = _shared(list(split.values()), shortest - 1)
    backwards = [parts[::-1] for parts in split.values()]
    trailing = _shared(backwards, shortest - leading - 1)
    return {
        path: str(PurePath(*parts[leading : len(parts) - trailing])) if parts else path
        for path, parts in split.items()
    }


def show(value: Any) -> str:
    """A setting's value on one short line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _told(key: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """``rank 8``, ``reflection`` or ``no reflection``."""
    value = settings[0][key]
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return f"{key} {_value(key, settings)}"


def _value(key: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """How the first side's value is shown beside the others'."""
    value = settings[0][key]
    if _is_path(key, settings[0]):
        others = {str(s[key]) for s in settings if s.get(key) is not None}
        value = shorten_paths(others)[value]
        return value if len(value) <= LONGEST else "…" + value[1 - LONGEST :]
    return show(value)


def _is_path(key: str, settings: Mapping[str, Any]) -> bool:
    return key in PATHS and isinstance(settings.get(key), str)


def _shared(all_parts: Sequence[Sequence[str]], most: int) -> int:
    """How many of the first parts all have in common, at most ``most``."""
    for n, parts in enumerate(zip(*all_parts, strict=False)):
        if n >= most or len(set(parts)) > 1:
            return n
    return max(0, most)
