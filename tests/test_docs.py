"""The pages that repeat what the code says: help texts, defaults, exported names."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import runpy
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import fttt
from fttt import testing
from fttt.cli import app
from fttt.config import FinetuneConfig, RunConfig, field_help
from fttt.config.training_configs import OpTuneConfig
from fttt.methods import METHODS
from fttt.models.locate import refusal
from fttt.tasks import get_task
from fttt.testing.tiny_models import family_types

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_family_of_the_library_has_a_row() -> None:
    """A later version of the library: run ``benchmarks/families.py --write``."""
    text = page("models.md")
    version = re.search(r"every model type that `transformers` (\d+\.\d+) loads", text)
    assert version is not None
    table = text.split("<!-- families -->")[1]
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \|", table, flags=re.MULTILINE)
    for family, found in rows:
        why = refusal({"model_type": family})
        assert why is None or found == f"refused: {why}"
        assert found.split(":")[0] in {"equal", "refused", "not tried"}
    if importlib.metadata.version("transformers").startswith(f"{version[1]}."):
        assert sorted(family for family, _ in rows) == sorted(family_types())


def test_the_table_of_a_large_cluster_follows_from_the_measured_costs() -> None:
    driver = runpy.run_path(str(DOCS.parent / "benchmarks" / "driver.py"))
    rows = re.findall(r"^\| .*, [\d,]+ .*\| [\d.]+ \| .* \|$", page("scale.md"), flags=re.MULTILINE)
    assert len(rows) == 3
    for row, tokens, rate, fact_ms in zip(
        rows, (256, 2048, 256), (22_400, 22_400, 240_000), (0.026, 0.086, 0.026), strict=True
    ):
        made = driver["cluster_row"](tokens, rate, 0.66, fact_ms)
        said, follows = (text.split("|")[2:] for text in (row, made))
        for got, right in zip(said[:4], follows[:4], strict=True):
            assert got.strip().startswith(right.strip())


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_described_with_their_settings(method: str) -> None:
    sections = re.split(r"^## ", page("methods.md"), flags=re.MULTILINE)
    section = next(s for s in sections if s.startswith(f"{method}\n"))
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    expected = []
    for name, field in METHODS[method].Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = ", ".join(default) if isinstance(default, tuple) else str(default)
        shown = "required" if field.is_required() else shown
        expected.append((name, shown, field.description))
    assert rows == expected


def test_each_method_says_whether_it_trains_on_thoughts() -> None:
    table = page("thoughts.md").partition("## What is trained on")[2]
    rows = dict(re.findall(r"^\| (.*`.*) \| (.*) \|$", table, flags=re.MULTILINE))
    for name, method in METHODS.items():
        said = [text for names, text in rows.items() if f"`{name}`" in names]
        assert len(said) == 1, name
        takes = "train_on_thoughts" in method.Settings.model_fields
        settings = "`fttt --reflection`" if name == "fttt" else f"`{name}`"
        named = next(text for names, text in rows.items() if settings in names)
        assert ("--no-train-on-thoughts" in named) == takes, name


@pytest.mark.parametrize(
    ("name_of_page", "config"),
    [("run-folder.md", RunConfig), ("finetuning.md", FinetuneConfig), ("optune.md", OpTuneConfig)],
)
def test_every_key_of_a_recipe_is_described(name_of_page: str, config: type[BaseModel]) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page(name_of_page), flags=re.MULTILINE)
    described = dict(rows)
    for name, field in config.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys = [f"{name}.{key}" for key in kind.model_fields] if nested else [name]  # type: ignore[union-attr]
        for key in keys:
            assert described[key] == field_help(key, config)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_to_a_page_and_a_heading(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, heading = link.partition("#")
            target = path.parent / (name or path.name)
            assert target.exists(), link
            if heading:
                heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
                assert heading in anchors, link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_with_what_they_print(path: Path) -> None:
    """By `make notebooks`, which CI runs: all of it, in order, without an error or a warning."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    printed = [output for cell in codes for output in cell["outputs"]]
    assert printed
    for output in printed:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
    assert f": {path.stem}.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")


def test_names_in_examples_exist() -> None:
    for path in DOCS.glob("*.md"):
        for name in re.findall(r"\bfttt\.([A-Z]\w+)", path.read_text(encoding="utf-8")):
            assert hasattr(fttt, name), f"{path.name} names fttt.{name}"


def test_the_reference_has_every_public_name() -> None:
    names = re.findall(r"^::: ([\w.]+)$", page("reference.md"), flags=re.MULTILINE)
    public = {f"fttt.{name}" for name in fttt.__all__} - {"fttt.__version__"}
    assert sorted(names) == sorted(public | {f"fttt.testing.{name}" for name in testing.__all__})


def test_the_example_of_a_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n# mine\.py\n(.*?)```", page("learners.md"), flags=re.DOTALL)
    assert code is not None
    (tmp_path / "mine_from_docs.py").write_text(code.group(1))
    monkeypatch.chdir(tmp_path)
    from fttt.methods import find_method
    from fttt.testing import play

    method = find_method("mine_from_docs:Patient")(fttt.MethodSettings())
    scene = play(method, ["1", "7"], trials=4)
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "correct"]
    assert [r.temperature for r in scene.engine.generations] == [1.0, 0.5]


def test_the_example_of_a_learner_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n# distill\.py.*?\n(.*?)```", page("learners.md"), flags=re.DOTALL)
    assert code is not None
    assert len(code.group(1).splitlines()) <= 40
    (tmp_path / "distill_from_docs.py").write_text(code.group(1))
    monkeypatch.chdir(tmp_path)
    from fttt.methods import find_method
    from fttt.testing import play

    method = find_method("distill_from_docs:Distill")
    scene = play(method(method.Settings()), ["1", "2", "7"], trials=4)
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "correct"]
    (lesson,) = scene.engine.trainings[0].lessons
    assert lesson.targets[0].teacher is not None
    assert lesson.targets[0].after == len(scene.engine.generations[0].prompt_ids)


def test_the_example_of_a_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n# backwards\.py\n(.*?)```", page("tasks.md"), flags=re.DOTALL)
    assert code is not None
    (tmp_path / "backwards_from_docs.py").write_text(code.group(1))
    monkeypatch.chdir(tmp_path)
    task = get_task("backwards_from_docs:Backwards")
    first, *others = task.load(fttt.TaskOptions())
    assert others
    assert first.prompt.startswith("Spell the word cat backwards.")

    async def judge() -> list[str]:
        verifier = task.verifier()
        texts = ("It is tac.", "cat", " ")
        found = [(await verifier.verify(first, text)).outcome for text in texts]
        await verifier.close()
        return found

    assert asyncio.run(judge()) == ["correct", "incorrect", "unanswered"]


FOREIGN = {
    "accelerate launch",
    "ray start",
    "torchrun",
    "tensorboard",
    "systemd-run",
    "http.server",
}
"""Commands of others, whose flags are theirs."""


def test_every_flag_in_the_pages_exists() -> None:
    known: set[str] = set()
    commands = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands.extend(getattr(command, "commands", {}).values())
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
    for path in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        theirs = flags_of_scripts(text)
        for line in text.splitlines():
            ours = line.partition("-m fttt")[2] if "-m fttt" in line else line
            if any(command in ours for command in FOREIGN):
                continue
            assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", ours)) <= known | theirs, (
                f"{path.name}: {line}"
            )


def flags_of_scripts(text: str) -> set[str]:
    """Options of the benchmarks that a page names."""
    found: set[str] = set()
    for name in set(re.findall(r"benchmarks/\w+\.py", text)):
        script = (DOCS.parent / name).read_text(encoding="utf-8")
        found.update(re.findall(r'add_argument\(\s*"(--[a-z][\w-]*)"', script))
    return found
