"""A run as a log of Inspect (``inspect_ai``), which its viewer and its readers open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from fttt.errors import UsageError
from fttt.files import cannot_write
from fttt.store import Run
from fttt.types import JSON, Question, Trial

__all__ = ["ENDINGS", "write_inspect_log"]

ENDINGS = (".eval", ".json")
"""The two forms of a log: Inspect's own archive, and one JSON document."""
_VALUES = {"correct": "C", "incorrect": "I", "unanswered": "N"}
"""A verdict as Inspect writes one."""
_SUMMED = ("questions", "solved", "accuracy", "trials_total", "trials_mean", "unanswered", "score")


def write_inspect_log(run: Run, out: Path) -> int:
    """Write a run as a log of Inspect; return how many samples it has.

    A question is a sample, and each of its trials an epoch of it: the prompt, the answer with its
    thought, the verdict as the score ``verdict`` (C, I, or N without an answer), and the verifier's
    number, where it gives one, as ``score``. The run's settings and environment are the log's
    metadata, and its accuracy over questions the log's result.

    Args:
        run: finished or not; what is done so far is written.
        out: the file, whose ending says which form it has.

    Raises:
        ModuleNotFoundError: Inspect is not installed.
        UsageError: the file has another ending.
        RunError: it cannot be written.
    """
    logs: Any = import_module("inspect_ai.log")
    if out.suffix not in ENDINGS:
        raise UsageError(
            f"--out {str(out)!r} does not end as a log of Inspect; name a file that ends with "
            f"{' or '.join(ENDINGS)}."
        )
    questions = {question.id: question for question in run.questions}
    samples = [_sample(questions[trial.question_id], trial, run.model) for trial in run.trials]
    log = logs.EvalLog(
        status="success" if run.finished else "started",
        eval=_spec(logs, run),
        results=_results(logs, run),
        stats=logs.EvalStats(),
        samples=samples,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        logs.write_eval_log(log, str(out.absolute()))
    except OSError as error:
        raise cannot_write(out, error, "name another file with --out") from error
    return len(samples)


def _spec(logs: Any, run: Run) -> Any:
    """What was run: the settings are those of ``config.toml``."""
    models: Any = import_module("inspect_ai.model")
    sampling: Mapping[str, Any] = run.config.get("sampling", {})
    temperature = sampling.get("temperature")
    begun = datetime.fromtimestamp((run.path / "config.toml").stat().st_mtime, UTC)
    return logs.EvalSpec(
        created=begun.isoformat(timespec="seconds"),
        task=run.task,
        task_id=run.path.name,
        run_id=run.path.name,
        task_args=_plain(run.config.get("data", {})),
        solver=run.method,
        solver_args=_plain(run.config.get("settings", {})),
        dataset=logs.EvalDataset(
            name=run.task,
            samples=len(run.questions),
            sample_ids=[question.id for question in run.questions],
        ),
        model=run.model,
        model_base_url=run.config.get("endpoint"),
        model_generate_config=models.GenerateConfig(
            # one for all trials is all that Inspect has room for
            temperature=temperature if isinstance(temperature, int | float) else None,
            top_p=sampling.get("top_p"),
            max_tokens=sampling.get("max_new_tokens"),
            seed=run.seed,
        ),
        config=logs.EvalConfig(epochs=run.trial_budget),
        packages={
            name: str(number) for name, number in run.environment.get("versions", {}).items()
        },
        metadata={
            "fttt_run": str(run.path),
            "config": _plain(run.config),
            "environment": _plain(run.environment),
        },
    )


def _results(logs: Any, run: Run) -> Any:
    """The figures of ``summary.json`` over questions."""
    metrics = {
        name: logs.EvalMetric(name=name, value=run.summary[name])
        for name in _SUMMED
        if isinstance(run.summary.get(name), int | float)
    }
    return logs.EvalResults(
        total_samples=len(run.trials),
        completed_samples=len(run.trials),
        scores=[logs.EvalScore(name="verdict", scorer="fttt", metrics=metrics)],
        metadata={"summary": _plain(run.summary)},
    )


def _sample(question: Question, trial: Trial, model: str) -> Any:
    """A trial: an epoch of its question."""
    logs, models = import_module("inspect_ai.log"), import_module("inspect_ai.model")
    scores: Any = import_module("inspect_ai.scorer")
    content: Any = trial.completion
    if trial.thought is not None:
        content = [
            models.ContentReasoning(reasoning=trial.thought),
            models.ContentText(text=trial.completion),
        ]
    answer = models.ChatMessageAssistant(content=content, model=model, source="generate")
    usage = models.ModelUsage(
        input_tokens=trial.usage.prompt_tokens,
        output_tokens=trial.usage.generated_tokens,
        total_tokens=trial.usage.prompt_tokens + trial.usage.generated_tokens,
        reasoning_tokens=trial.thought_tokens or None,
    )
    stop = "max_tokens" if trial.finish_reason == "length" else "stop"
    told = {"failed": trial.failed, "tests_passed": trial.tests_passed,
            "tests_total": trial.tests_total}  # fmt: skip
    given = {
        "verdict": scores.Score(
            value=_VALUES[trial.verdict],
            answer=trial.extracted,
            explanation=trial.detail,
            metadata={name: value for name, value in told.items() if value is not None},
        )
    }
    if trial.score is not None:
        given["score"] = scores.Score(value=trial.score, answer=trial.extracted)
    return logs.EvalSample(
        id=question.id,
        epoch=trial.trial + 1,
        input=question.prompt,
        target=_target(question.gold),
        messages=[models.ChatMessageUser(content=question.prompt, source="input"), answer],
        output=models.ModelOutput(
            model=model,
            choices=[models.ChatCompletionChoice(message=answer, stop_reason=stop)],
            usage=usage,
        ),
        scores=given,
        metadata={
            "generation": trial.generation,
            "loss": trial.loss,
            "trained_tokens": trial.usage.trained_tokens,
            "verifier_calls": trial.usage.verifier_calls,
            "verifier_tokens": trial.usage.verifier_tokens,
        },
        model_usage={model: usage},
        total_time=trial.usage.seconds,
    )


def _target(gold: JSON) -> str:
    if gold is None:
        return ""
    return gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings or facts as JSON has them; a recipe may hold dates."""
    found: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return found
