"""The settings of a run; each field's description is the help text of its flag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fttt.types import Ablation, Quantize

__all__ = [
    "QUANTIZE",
    "BudgetSection",
    "DataSection",
    "EngineSection",
    "PromptStyle",
    "RunConfig",
    "SamplingSection",
    "Section",
    "field_help",
    "section",
]

DEFAULT_TRIALS = 32


class Section(BaseModel):
    """A table of a recipe: nothing but its own keys, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def section(kind: type[Section]) -> Any:
    """A field that holds a section's defaults where nothing is given."""
    return Field(default_factory=lambda: kind.model_validate({}))


NO_CASES = "none"
"""What stands for no file of correct cases."""
EMBEDDED_MODEL = "smollm2-135m"


def absolute_name(name: str) -> str:
    """A model's or checkpoint's name; a path, where it is one here, from the root.

    So a run can be resumed from another folder.
    """
    path = Path(name).expanduser()
    local = name not in ("", EMBEDDED_MODEL) and path.exists()
    return str(path.absolute()) if local else name


def _absolute(path: Path) -> Path:
    return path.absolute() if path.exists() and str(path) != NO_CASES else path


LocalPath = Annotated[Path, AfterValidator(_absolute)]
"""A path; of what exists it is stored from the root, so that a run can be resumed from another
folder, and of what does not it is named as it was given."""
ModelName = Annotated[str, AfterValidator(absolute_name)]
"""A model: a hub name, a URL, or a path, which is stored from the root."""


def _distinct(ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))


PromptStyle = Annotated[
    Literal["own", "paper"] | None,
    AfterValidator(lambda style: None if style == "own" else style),
]
"""Which prompt of a task is used; its own one is not written into recipes."""


class DataSection(Section):
    """Which questions are asked."""

    data_dir: LocalPath | None = Field(
        None, description="folder with the benchmark in its own layout (jsonl: the file)"
    )
    split: str = Field("test", description="split of the task")
    limit: int | None = Field(None, ge=1, description="ask only the first N questions")
    questions: Annotated[tuple[str, ...], AfterValidator(_distinct)] | None = Field(
        None, min_length=1, description="ask only these question ids"
    )
    skip_cases: LocalPath | None = Field(
        None,
        description="JSON list of question ids (or their numbers) to leave out, as greedy writes "
        "it; none: ask all questions",
    )
    prompt: str | None = Field(
        None, description="prompt template instead of the task's own, with {question} in it"
    )
    prompt_style: PromptStyle = Field(
        None, description="own (the task's prompt) or paper (the prompt of the paper's public code)"
    )
    seed: int = Field(42, description="seed of tasks that generate their questions")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the task, as key=value"
    )


class BudgetSection(Section):
    """How long each question may be tried. Of trials, tokens and time at least one is given."""

    trials: int | None = Field(
        None, ge=1, description="trials a question (32 where no other budget is given)"
    )
    unanswered: Literal["count", "retry"] = Field(
        "count",
        description="whether a trial without an answer spends budget, or is free (retry: at most "
        "2N + 1 trials)",
    )
    token_budget: int | None = Field(
        None, ge=1, description="tokens that a question may generate before its last trial begins"
    )
    time_budget: float | None = Field(
        None, gt=0, description="seconds that a question may take before its last trial begins"
    )

    until: float | None = Field(
        None,
        description="a question is solved by the first answer with this score, whatever else its "
        "verifier says (where it gives scores)",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_trials(cls, given: Any) -> Any:
        if isinstance(given, dict) and not any(
            given.get(key) is not None for key in ("trials", "token_budget", "time_budget")
        ):
            return {**given, "trials": DEFAULT_TRIALS}
        return given


_RANGE = ".."
"""Stands between the first and the last temperature of a range."""


def _read_temperature(given: Any) -> float | tuple[float, ...] | str:
    """A temperature, one for each trial, or a range as ``0.6..1.2``."""
    if isinstance(given, str):
        ends = given.split(_RANGE)
        found = _numbers(ends if len(ends) > 1 else given.split(","))
        if found is not None and len(ends) == len(found) == 2:
            return given.strip()
        found = None if len(ends) > 1 else found
    else:
        found = _numbers(given if isinstance(given, list | tuple) else [given])
    if not found:
        raise PydanticCustomError(
            "temperature",
            "should be a number of at least 0, a list as 0.6,0.8,1.0 (one a trial), or a range as "
            "0.6..1.2 (over the trials)",
        )
    return found[0] if len(found) == 1 else found


def _numbers(parts: Sequence[Any]) -> tuple[float, ...] | None:
    """Finite numbers of at least 0; ``None`` where one is none."""
    try:
        found = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError):
        return None
    good = len(found) == len(parts) and all(0 <= number < math.inf for number in found)
    return found if good else None


class SamplingSection(Section):
    """How completions are drawn."""

    temperature: Annotated[float | tuple[float, ...] | str, BeforeValidator(_read_temperature)] = (
        Field(
            0.6,
            description="sampling temperature; 0 is greedy. A list 0.6,0.8,1.0 has one for each "
            "trial, the last for all that follow; a range 0.6..1.2 goes from the first trial to "
            "the last",
        )
    )
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling probability")
    top_k: int | None = Field(
        None, ge=1, description="sample from the k most probable tokens (all)"
    )
    min_p: float | None = Field(
        None, gt=0, le=1, description="min-p sampling: least probability, as a share of the highest"
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        description="repetition penalty on tokens of the prompt and the answer; 1 is none",
    )
    max_new_tokens: int = Field(
        2048, ge=1, description="maximum tokens of a completion, its thought included"
    )
    think_tokens: int | None = Field(
        None,
        ge=1,
        description="thinking budget: a thought that has so many tokens is closed, and the answer "
        "follows (no limit but --max-new-tokens)",
    )

    def temperature_at(self, trial: int, trials: int | None) -> float:
        """The temperature of a trial.

        Args:
            trial: its number, from 0.
            trials: the budget, over which a range goes.
        """
        if isinstance(self.temperature, str):
            first, last = map(float, self.temperature.split(_RANGE))
            steps = max(1, (trials or 1) - 1)
            return first + (last - first) * min(trial, steps) / steps
        if isinstance(self.temperature, tuple):
            return self.temperature[min(trial, len(self.temperature) - 1)]
        return self.temperature


def _read_replicas(given: Any) -> Any:
    """A number of replicas, or auto."""
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    if given not in (None, "auto") and (type(given) is not int or given < 1):
        raise PydanticCustomError("replicas", "should be a number of at least 1, or auto")
    return given


QUANTIZE = (
    "quantise the weights of the base model as they are read: int8, nf4 or fp4 (4 bits), or none; "
    "needs fttt[quantized]"
)


class EngineSection(Section):
    """Where and how the model runs. Only dtype and quantize change the draws."""

    dtype: str = Field(
        "auto", description="auto, float32, bfloat16 or float16 (auto: bfloat16 on a GPU)"
    )
    quantize: Quantize | None = Field(None, description=QUANTIZE)
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch_size: int | None = Field(
        None, ge=1, description="maximum sequences in a batch (sized from the free memory)"
    )
    memory_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the device's memory that a run, or each of its replicas, may hold, "
        "weights included (all that is free)",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="maximum tokens of a conversation (what the method needs, at most the model's "
        "context)",
    )
    concurrency: int | None = Field(
        None, ge=1, description="with an endpoint: answers being written at once (16)"
    )
    request_timeout: float | None = Field(
        None, gt=0, description="with an endpoint: seconds to wait for an answer (600)"
    )
    replicas: Annotated[int | Literal["auto"] | None, BeforeValidator(_read_replicas)] = Field(
        None,
        description="ask the questions in so many processes, each with a model on a GPU of its own "
        "(auto: as many as there are GPUs), or on its share of the cores where there is none",
    )
    gpus_per_replica: float = Field(
        1,
        gt=0,
        description="part of a GPU that a replica has, of its memory too: two at 0.5 share one, "
        "which pays where the model is small",
    )
    ray_address: str | None = Field(
        None,
        min_length=1,
        description="HOST:PORT (or auto) of a Ray cluster that the replicas run on (else this "
        "machine)",
    )


class RunConfig(Section):
    """One run: a method on a task with a model."""

    method: str = Field(description="a method of `fttt list methods`, or module:Class")
    model: ModelName = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="hub name, folder, GGUF file, smollm2-135m, or openai:NAME with an endpoint",
    )
    endpoint: str | None = Field(
        None,
        description="URL of an OpenAI-compatible server that has the model, such as "
        "http://localhost:8000/v1; its key is read from OPENAI_API_KEY",
    )
    adapter: LocalPath | None = Field(
        None,
        description="fine-tuned checkpoint to start from; without a model, its own base model",
    )
    template_args: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the model's chat template, as key=value: enable_thinking=false, "
        "say, or reasoning_effort=low",
    )
    task: str = Field("arithmetic", description="a task of `fttt list tasks`, or module:Class")
    seed: int = Field(42, description="seed of sampling and of fresh adapter weights")
    name: str | None = Field(
        None,
        min_length=1,
        description="name of the run folder under outputs/, and of the run's side in comparisons",
    )
    ablate: Ablation | None = Field(
        None,
        description="what a learner learns from in place of an attempt and its verdict: shuffle "
        "(those of another question), constant (always the same) or random-verdict (a coin's); "
        "verdicts on record stay true",
    )
    save_correct_cases: bool | None = Field(
        None, description="write the ids of solved questions to metadata/ (greedy: on)"
    )
    data: DataSection = section(DataSection)
    budget: BudgetSection = section(BudgetSection)
    sampling: SamplingSection = section(SamplingSection)
    engine: EngineSection = section(EngineSection)
    settings: dict[str, Any] = Field(
        default_factory=dict, description="settings of the method, as key=value"
    )

    def to_toml(self) -> dict[str, Any]:
        """The settings in the form of a recipe, without unset fields."""
        return self.model_dump(mode="json", exclude_none=True)


def field_help(path: str, model: type[BaseModel] = RunConfig) -> str:
    """The help text of a field, named as ``section.field`` or ``field``."""
    *sections, name = path.split(".")
    for section in sections:
        found = model.model_fields[section].annotation
        assert isinstance(found, type)
        model = found
    return model.model_fields[name].description or ""
