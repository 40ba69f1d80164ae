"""Going on with a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fttt.config import RunConfig, build, merge
from fttt.errors import UsageError
from fttt.experiment.adapters import network_fingerprint
from fttt.experiment.plan import Plan, prepare, settle
from fttt.store import Run, fingerprint

__all__ = ["MAY_DIFFER", "leaves", "resume_plan"]

MAY_DIFFER = frozenset({"engine.batch_size", "engine.device"})
"""Settings that change no draw, so that another machine, or one with less memory free, may finish a
run."""


def resume_plan(run: Run, values: Mapping[str, Any]) -> Plan:
    """The plan of a folder's run, under ``values``: its own settings with flags laid over them.

    Raises:
        UsageError: a setting contradicts the folder's, or the data have changed since.
    """
    values = merge(_found(run), values)
    config, _, settings = settle(build(RunConfig, values, "the settings"))
    own = dict(leaves(build(RunConfig, run.config, f"{run.path}/config.toml").to_toml()))
    asked = dict(leaves(config.to_toml()))
    for name in sorted({*own, *asked}, key=lambda name: (name.count("."), name)):
        if own.get(name) != asked.get(name) and name not in MAY_DIFFER:
            raise UsageError(
                f"The run in {str(run.path)!r} was made with {name} = {own.get(name)!r} and cannot "
                f"go on with {asked.get(name)!r}; leave that setting away, or start a new run."
            )
    _check_weights(run, config)
    if network_fingerprint(settings) != run.environment.get("network"):
        raise UsageError(
            f"The network in {config.settings['checkpoint']!r} has changed since the run in "
            f"{str(run.path)!r} began; bring the old one back, or start a new run."
        )
    plan = prepare(config, only=[question.id for question in run.questions])
    questions = []
    for old, new in zip(run.questions, plan.questions, strict=True):
        if fingerprint(old) != fingerprint(new):
            raise UsageError(
                f"The question {old.id!r} has changed since the run in {str(run.path)!r} began; "
                "bring the old data back, or start a new run."
            )
        questions.append(replace(new, rendered=old.rendered))
    return replace(plan, questions=tuple(questions))


def _found(run: Run) -> dict[str, Any]:
    """Where the run's data were: they may have been found without having been asked for."""
    folder = run.config.get("data", {}).get("data_dir")
    return {} if folder is None else {"data": {"data_dir": folder}}


def _check_weights(run: Run, config: RunConfig) -> None:
    """Refuse a checkpoint folder that has been written anew since the run began."""
    if config.adapter is None:
        return
    from fttt.finetune.load import describe_checkpoint

    then = run.environment.get("adapter", {}).get("fingerprint")
    if describe_checkpoint(config.adapter)["fingerprint"] != then:
        raise UsageError(
            f"The checkpoint {str(config.adapter)!r} has changed since the run in "
            f"{str(run.path)!r} began; bring the old one back, or start a new run."
        )


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested tables, by their names as ``section.field``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
