"""``fttt bench``: small measurements end in a table."""

import json
from pathlib import Path

import pytest

from fttt.testing import call, save_tiny_model


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = call("bench", *words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny_model(tmp_path / "tiny"))
    words = ("--model", model, "--questions", "3", "--new-tokens", "6", "--device", "cpu")
    code, out, _ = bench(capsys, "engine", *words)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    (generate,) = [row for row in rows if row[:1] == ["generate"] and row[1] != "and"]
    (trained,) = [row for row in rows if row[:3] == ["generate", "and", "train"]]
    assert float(generate[1].replace(",", "")) > 0
    assert float(trained[3].replace(",", "")) > 0
    assert "3 sequences at once" in " ".join(out.split())


def test_judge(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bench(capsys, "judge", "--clients", "1,2", "--seconds", "0.3", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["clients"] for row in rows] == [1, 2]
    assert [row["wrong"] for row in rows] == [0, 0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("judge", "--clients", "1,x"), "--clients cannot be '1,x'"),
        (("engine", "--model", "nothing"), "No model 'nothing'"),
        (("engine", "--questions", "0"), "--questions"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    code, _, err = bench(capsys, *words)
    assert code == 2
    assert says in err
