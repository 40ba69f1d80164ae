"""``fttt run`` on a tiny model with the real engine."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fttt.engine.memory_plan import plan_memory
from fttt.models.chat import ChatFormat
from fttt.store import Run
from fttt.testing import call, save_tiny_model, tiny_tokenizer

COMMON = ["--task", "arithmetic", "--limit", "2", "--max-new-tokens", "8", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_run_ends_in_a_table_and_a_folder(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "fttt", "--model", model, "--trials", "2", *COMMON) == 0
    shown = capsys.readouterr()
    (folder,) = Path("outputs").iterdir()
    assert folder.name.startswith("fttt-arithmetic-tiny-s42-")
    assert str(folder) in shown.out
    ready, size, *_ = shown.err.splitlines()  # and a line of progress every 15 s
    assert re.fullmatch(r"tiny is ready \(\d+\.\d s\)", ready)
    assert size.startswith("2 questions, at most 4 trials and 32 generated tokens; 2 sequences")
    assert "weights 0.00 GiB" in size
    assert "0/2" in shown.out
    assert "0.0 to 65.8" in shown.out
    assert {path.name for path in folder.iterdir()} == {
        "config.toml",
        "environment.json",
        "questions.jsonl",
        "trials.jsonl",
        "events.jsonl",
        "summary.json",
        "run.log",
    }
    run = Run.open(folder)
    assert [trial.trial for trial in run.trials] == [0, 1, 0, 1]
    last = run.config["budget"]["trials"] - 1
    assert all((trial.loss is None) == (trial.trial == last) for trial in run.trials)
    assert run.environment["device"] == "cpu"
    assert run.environment["versions"]["torch"]


def test_a_named_run_lies_in_a_folder_of_that_name(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--trials", "1", "--name", "my first", "--json", *COMMON]
    assert call("run", "best-of-n", *words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"].startswith("outputs/my_first-2")
    assert (facts["questions"], facts["trials_total"]) == (2, 2)
    assert call("show", "outputs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [facts]
    (Path(facts["folder"]) / "summary.json").unlink()
    assert call("show", facts["folder"]) == 0
    assert "0/2" in (shown := capsys.readouterr().out)
    assert f"resume it by `fttt run --resume {facts['folder']}`" in shown


def test_a_tracker_gets_the_figures_of_a_run(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "fttt", "--model", model, "--trials", "2", "--out", "r", *COMMON]
    assert call(*words, "--tracker", "paper") == 2
    assert "no tracker 'paper'" in capsys.readouterr().err
    assert call(*words, "--tracker", "tensorboard") == 0
    events: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator("r/logs").Reload()
    assert {"questions", "solved", "accuracy", "loss", "final_accuracy"} <= set(
        read.Tags()["scalars"]
    )
    assert read.Scalars("questions")[-1].value == 2
    assert Run.open("r").finished
    assert "failed" not in capsys.readouterr().err


def test_a_finished_run_is_shown_again_and_other_settings_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("run", "best-of-n", "--model", model, "--trials", "1", "--out", "r", *COMMON) == 0
    before = Path("r/trials.jsonl").read_bytes()
    first = capsys.readouterr().out
    assert call("run", "--resume", "r") == 0
    assert capsys.readouterr().out == first
    assert Path("r/trials.jsonl").read_bytes() == before
    assert call("run", "best-of-n", "--resume", "r", "--seed", "43") == 2
    assert "seed = 42 and cannot be resumed with 43" in capsys.readouterr().err
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    assert call("run", "best-of-n", "--model", model, "--out", "r", *COMMON) == 2
    assert "is not empty" in capsys.readouterr().err


def test_lost_trials_of_a_finished_run_are_said_and_made_again(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "fttt", "--model", model, "--trials", "2", "--out", "r", *COMMON) == 0
    path, whole = Path("r/trials.jsonl"), Run.open("r").trials
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    (hurt,) = Run.open("r").lost
    assert hurt == json.loads(lines[0])["question_id"]
    capsys.readouterr()
    assert call("report", "r", "--out", "r.html") == 2
    assert "lost trials of 1 of its 2 questions: it ended with 4" in capsys.readouterr().err
    assert call("report", "r", "--out", "r.html", "--intersection") == 0
    assert call("run", "--resume", "r") == 0
    again = Run.open("r")
    assert [trial.token_ids for trial in again.trials] == [trial.token_ids for trial in whole]
    assert again.finished
    assert not again.lost


def test_a_model_that_has_changed_does_not_go_on_with_a_run(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, "own")
    assert call("run", "best-of-n", "--model", "own", "--trials", "1", "--out", "r", *COMMON) == 0
    (Path("r") / "summary.json").unlink()
    config = Path("own/config.json")
    config.write_text(config.read_text() + "\n")
    assert call("run", "--resume", "r") == 2
    assert "own' has changed since the run in 'r' began" in capsys.readouterr().err


def test_a_run_is_resumed_from_another_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, "own")
    Path("q.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "4"}))
    words = ["--task", "jsonl", "--data-dir", "q.jsonl", "--verifier", "number", *COMMON[2:]]
    assert call("run", "best-of-n", "--model", "own", "--trials", "1", "--out", "r", *words) == 0
    whole = Path("r/trials.jsonl").read_bytes()
    (Path("r") / "summary.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("run", "--resume", str(tmp_path / "r")) == 0
    assert (tmp_path / "r" / "trials.jsonl").read_bytes() == whole
    assert Run.open(tmp_path / "r").finished


def test_a_dry_run_prints_a_recipe_that_runs(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", model, "--trials", "3", "--seed", "5", "--set", "lr=1e-3", "--reflection"]
    assert call("run", "fttt", *flags, *COMMON, "--dry-run") == 0
    printed = capsys.readouterr().out
    recipe = tomllib.loads(printed)
    assert recipe["budget"]["trials"] == 3
    assert recipe["settings"]["lr"] == 1e-3
    assert recipe["settings"]["reflection"] is True
    assert recipe["data"]["limit"] == 2
    assert not Path("outputs").exists()
    Path("r.toml").write_text(printed)
    assert call("run", "--recipe", "r.toml", "--dry-run") == 0
    assert capsys.readouterr().out == printed
    assert call("run", "--recipe", "r.toml", "--out", "r", "--trials", "1") == 0
    run = Run.open("r")
    assert run.seed == 5
    assert run.trial_budget == 1
    assert call("run", "--recipe", "r/config.toml", "--out", "again") == 0
    assert [t.token_ids for t in Run.open("again").trials] == [t.token_ids for t in run.trials]


def test_greedy_writes_cases_that_skip_cases_reads(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "greedy", "--model", model, "--out", "g", *COMMON) == 0
    path = Path("metadata/tiny_arithmetic_correct_cases.json")
    assert json.loads(path.read_text()) == []
    first = Run.open("g").questions[0].id
    path.write_text(json.dumps([first]))
    flags = ["--model", model, "--trials", "1", "--skip-cases", str(path), "--out", "b"]
    assert call("run", "best-of-n", *flags, *COMMON) == 0
    assert first not in [question.id for question in Run.open("b").questions]
    assert call("run", "best-of-n", "--model", model, "--skip-cases", "no.json", *COMMON) == 2
    assert "There is no file of correct cases 'no.json'" in capsys.readouterr().err


def test_what_was_found_is_said_and_kept(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "greedy", "--model", model, "--out", "g", *COMMON) == 0
    first, second = (question.id for question in Run.open("g").questions)
    path = Path("metadata/tiny_arithmetic_correct_cases.json")
    path.write_text(json.dumps([first]))
    words = ["run", "best-of-n", "--model", model, "--trials", "1", *COMMON]
    capsys.readouterr()
    assert call(*words, "--out", "hard") == 0
    assert f"Leaving out the 1 questions that '{path}' lists" in capsys.readouterr().err
    assert first not in [question.id for question in Run.open("hard").questions]
    assert Run.open("hard").config["data"]["skip_cases"] == str(path.absolute())
    (Path("hard") / "summary.json").unlink()
    path.unlink()
    assert call("run", "--resume", "hard") == 0
    assert "Leaving out" not in capsys.readouterr().err
    path.write_text(json.dumps([first]))
    assert call(*words, "--skip-cases", "none", "--out", "all") == 0
    assert [question.id for question in Run.open("all").questions] == [first, second]
    assert "Leaving out" not in capsys.readouterr().err


def test_a_style_of_prompts_that_does_not_exist(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "best-of-n", "--model", model, *COMMON, "--prompt-style"]
    assert call(*words, "papr") == 2
    assert (
        "--prompt-style cannot be 'papr'; it should be 'own' or 'paper'" in capsys.readouterr().err
    )
    assert call(*words, "paper") == 2
    assert "The task 'arithmetic' has no prompt in the paper's code" in capsys.readouterr().err


def test_batch_size_changes_nothing(model: str) -> None:
    for size in ("1", "16"):
        flags = ["--model", model, "--trials", "2", "--batch-size", size, "--out", size]
        assert call("run", "fttt", *flags, *COMMON) == 0
    one, many = ([t.token_ids for t in Run.open(size).trials] for size in ("1", "16"))
    assert one == many


def test_a_share_of_the_memory_is_kept_or_refused(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is generated; and not weighed where runs are compared or resumed."""
    words = ["run", "best-of-n", "--model", model, "--trials", "1", *COMMON]
    for share in ("0", "1.5", "40%"):
        assert call(*words, "--memory-share", share) == 2
        assert "--memory-share" in capsys.readouterr().err
    assert call(*words, "--memory-share", "0.000001", "--out", "r") == 2
    said = capsys.readouterr().err
    assert re.search(r"0\.0 GiB of the --memory-share of 1e-06 are left on cpu; raise --mem", said)
    assert not Path("r/trials.jsonl").exists() or not Path("r/trials.jsonl").read_text()
    shares: list[float | None] = []

    def planned(*arguments: Any, share: float | None, **more: Any) -> Any:
        shares.append(share)
        return plan_memory(*arguments, share=share, **more)

    monkeypatch.setattr("fttt.engine.engine.plan_memory", planned)
    assert call(*words, "--memory-share", "0.9", "--out", "s") == 0
    Path("sweep.toml").write_text(
        f'methods = ["best-of-n"]\ntasks = ["arithmetic"]\nseeds = [1]\n[base]\nmodel = "{model}"\n'
        "data = { limit = 1 }\nbudget = { trials = 1 }\nsampling = { max_new_tokens = 4 }\n"
    )
    assert call("sweep", "sweep.toml", "--memory-share", "0.8", "--out", "t") == 0
    assert call("sweep", "sweep.toml", "--memory-share", "0.7", "--out", "t") == 0
    assert shares == [0.9, 0.8]


def test_a_users_own_questions_and_check(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.jsonl").write_text('{"question": "Say anything.", "id": "mine"}\n')
    flags = ["--task", "jsonl", "--data-dir", "q.jsonl", "--max-new-tokens", "8"]
    verifier = ["--verifier", "command:test -n anything"]
    words = ["run", "best-of-n", "--model", model, *flags, *verifier, "--device", "cpu"]
    assert call(*words, "--out", "r") == 0
    run = Run.open("r")
    assert [(t.question_id, t.verdict) for t in run.trials] == [("mine", "correct")]


def test_what_casts_doubt_on_a_result_is_said(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("q.jsonl").write_text('{"question": "Say anything."}\n')
    Path("broken_check.py").write_text("def check(text): return text[1_000_000]\n")
    flags = ["--task", "jsonl", "--data-dir", "q.jsonl", "--max-new-tokens", "2", "--trials", "3"]
    words = ["run", "best-of-n", "--model", model, *flags, "--device", "cpu"]
    assert call(*words, "--verifier", "python:broken_check:check", "--out", "r") == 0
    shown = capsys.readouterr().out
    assert "note: the verifier itself failed in 3 of 3 trials" in shown
    assert "the verifier raised IndexError: string index out of range" in shown
    assert "--max-new-tokens 2 cut off 3 of 3 trials" in shown
    assert call(*words, "--verifier", "regex:.?", "--out", "s") == 0
    assert "verifier itself" not in capsys.readouterr().out


def test_a_question_longer_than_the_context_stops_before_the_run(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "greedy", "--model", model, "--task", "arithmetic", "--max-new-tokens", "2040"]
    assert call(*words, "--out", "r") == 2
    assert "--max-new-tokens 2040 is longer than the context of 2048" in capsys.readouterr().err
    assert not Path("r").exists()


def test_a_question_of_megabytes_is_refused_without_being_tokenized(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = []
    encode = ChatFormat.encode

    def counting(self: ChatFormat, text: str) -> tuple[int, ...]:
        longest.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(ChatFormat, "encode", counting)
    Path("q.jsonl").write_text(json.dumps({"question": "word " * 400_000, "answer": "4"}))
    words = ["--task", "jsonl", "--data-dir", "q.jsonl", "--verifier", "number"]
    assert call("run", "greedy", "--model", model, *words, *COMMON[2:]) == 2
    assert "has more than" in capsys.readouterr().err
    assert max(longest) < 200_000


def test_a_folder_that_cannot_hold_the_correct_cases_costs_no_table(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("metadata").touch()
    assert call("run", "greedy", "--model", model, "--out", "g", *COMMON) == 0
    shown = capsys.readouterr()
    assert "0/2" in shown.out
    assert "Cannot write 'metadata/tiny_arithmetic_correct_cases.json'" in shown.err
    assert "the run itself is complete" in shown.err
    assert "Resume" not in shown.err


def test_regrade_says_what_changed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "best-of-n", "--model", model, "--trials", "1", "--out", "r", *COMMON) == 0
    path = Path("r/trials.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    gold = Run.open("r").questions[0].gold
    lines[0]["completion"] = f"The final answer is {gold}."
    lines[0]["finish_reason"] = "stop"  # a point at the end of what was cut may be a decimal one
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert call("regrade", "r") == 0
    out = capsys.readouterr().out
    assert "1 of 2 verdicts changed; solved questions: 0 before, 1 now." in out
    assert "-> correct" in out
    assert Run.open("r-regraded").summary["solved"] == 1
    assert call("regrade", "r") == 0
    assert Path("r-regraded-2").is_dir()


def test_a_sweep_ends_in_one_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_text(
        f"""
methods = ["greedy", "best-of-n", {{method = "fttt", label = "mine", settings = {{lr = 1e-4}}}}]
hard_only = true
hard_limit = 1
[base]
model = "{model}"
data.limit = 2
budget.trials = 2
sampling.max_new_tokens = 8
engine.device = "cpu"
"""
    )
    assert call("sweep", "s.toml", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 3 runs:\n#   greedy-arithmetic: all questions, 1 trial each\n")
    assert tomllib.loads(printed)["hard_limit"] == 1
    assert not Path("s").exists()
    assert call("sweep", "s.toml", "--out", "s") == 0
    out = capsys.readouterr().out
    assert out.count("0/1") == 2
    assert "s/mine-arithmetic-s42" in out
    assert call("sweep", "s.toml", "--out", "s") == 0
    assert capsys.readouterr().out == out


def test_a_method_of_the_users_own_runs_by_its_class(model: str) -> None:
    Path("own_for_cli.py").write_text(
        """
from pydantic import Field
from fttt import Method, MethodSettings

class Settings(MethodSettings):
    heat: float = Field(1.0, description="temperature")

class Own(Method):
    name = "own"
    summary = "for tests"
    Settings = Settings

    def __init__(self, settings):
        self.settings = settings

    async def solve(self, question, session):
        async for trial in session.trials():
            await trial.verify(await trial.generate(temperature=self.settings.heat))
"""
    )
    flags = ["--model", model, "--trials", "2", "--set", "heat=0.0", "--out", "r"]
    assert call("run", "own_for_cli:Own", *flags, *COMMON) == 0
    run = Run.open("r")
    assert run.method == "own_for_cli:Own"
    for record in run.records:
        assert len({trial.token_ids for trial in record.trials}) == 1


def test_a_prompt_from_a_file_and_the_rule_of_mathematics(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompt.txt").write_text("Solve: {question}\nBox it.\n")
    words = ("--prompt", "prompt.txt", "--math-rule", "strict", "--dry-run")
    assert call("run", "greedy", "--model", model, "--task", "math500", *words) == 0
    recipe = tomllib.loads(capsys.readouterr().out)
    assert recipe["data"]["prompt"] == "Solve: {question}\nBox it."
    assert recipe["data"]["options"] == {"rule": "strict"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompt", "nowhere.txt"), "The prompt file 'nowhere.txt' cannot be read"),
        (("--task", "math500", "--math-rule", "lax"), "choose from equivalence, strict"),
        (("--math-rule", "strict"), "does not take the option 'rule'"),
    ],
)
def test_prompts_and_rules_that_do_not_exist_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert call("run", "greedy", "--model", model, *COMMON, *words) == 2
    assert says in capsys.readouterr().err


def test_who_diverges_is_told_and_not_sent_on(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--set", "lr=1e38", "--trials", "4", "--out", "r"]
    assert call("run", "fttt", "--model", model, *flags, *COMMON) == 1
    errors = capsys.readouterr().err
    assert "own weights have diverged" in errors
    assert "Resume with" not in errors
    assert len(Run.open("r").trials) >= 2  # what was before is kept


@pytest.mark.parametrize(
    ("template", "argument"),
    [
        ("qwen3", {"enable_thinking": False}),
        ("deepseek-r1", {}),
        ("harmony", {"reasoning_effort": "low"}),
    ],
)
def test_a_thinking_model_answers_as_transformers_has_it(
    template: str, argument: dict[str, str | bool], tmp_path: Path
) -> None:
    """The same tokens as ``generate`` with the template's own arguments."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = save_tiny_model(tmp_path / template, "qwen3", template=template)
    given = [f"--template-arg={name}={str(x).lower()}" for name, x in argument.items()]
    run_command = ["run", "greedy", "--model", str(model), "--out", "r", *COMMON, *given]
    assert call(*run_command) == 0
    run = Run.open("r")
    assert run.config["template_args"] == argument
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model)
    for question, trial in zip(run.questions, run.trials, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            **argument,
        )["input_ids"]
        assert trial.usage.prompt_tokens == ids.shape[1]
        with torch.no_grad():
            out = reference.generate(ids, do_sample=False, max_new_tokens=8)
        assert trial.token_ids == tuple(out[0, ids.shape[1] :].tolist())
        if template == "deepseek-r1":  # whose header has opened a thought, and nothing closed it
            assert (trial.completion, trial.verdict) == ("", "unanswered")
            assert trial.thought is not None


def test_faults_of_thinking_are_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    thinker = str(save_tiny_model(tmp_path / "thinker", "qwen3", template="qwen3"))
    for words, says in (
        (["--template-arg", "enable_thinking=false"], "has no argument 'enable_thinking'"),
        (["--template-arg", "enable_thinking"], "is not of the form key=value"),
        (["--think-tokens", "4"], "has no thoughts"),
        (["--think-tokens", "8"], "leaves no room for an answer within --max-new-tokens 8"),
        (["--think-tokens", "0"], "--think-tokens cannot be 0"),
        (["--model", thinker, "--think-tokens", "5"], "and 4 more that close it, leaves"),
        (["--model", thinker, "--max-new-tokens", "32768"], "within the context of 2048 tokens"),
        (["--no-train-on-thoughts"], "Unknown key 'train_on_thoughts' in the settings of"),
    ):
        assert call("run", "best-of-n", "--model", model, *COMMON, *words) == 2
        told = capsys.readouterr().err
        assert says in told
        assert "is ready" not in told, "it is said before weights are loaded"
    assert not Path("outputs").exists()


def test_a_reward_model_and_a_number_judge_together(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    Path("q.jsonl").write_text('{"question": "What is 3 + 4?", "answer": 7}\n')
    shape = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_hidden_layers": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(LlamaConfig(**shape, **heads, num_labels=1))
    judge.save_pretrained("judge")
    tiny_tokenizer().save_pretrained("judge")
    asked = ["--task", "jsonl", "--data-dir", "q.jsonl", "--max-new-tokens", "8", "--trials", "3"]
    both = "weighted(1*number, 2*reward:./judge)@99"
    given = ["run", "best-of-n", "--model", model, "--device", "cpu", *asked]
    assert call(*given, "--verifier", both, "--out", "r") == 0
    trials = Run.open("r").trials
    assert [trial.verdict for trial in trials] == ["incorrect"] * 3
    assert len({trial.score for trial in trials}) == 3
    assert all("reward:./judge: incorrect" in trial.detail for trial in trials)
    assert call(*given, "--verifier", f"any(number, reward:{model}@0)") == 2
    assert "is no sequence classifier but LlamaForCausalLM" in capsys.readouterr().err
    assert call(*given, "--verifier", "any(number") == 2
    assert "is incomplete; write all(A, B)" in capsys.readouterr().err
