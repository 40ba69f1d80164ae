"""The figure of docs/results.md, questions solved against trials, and what lies behind it.

    python benchmarks/multiples.py outputs/temperatures outputs/learners-test --out FIGURE.png

Runs of a task that differ only in the seed are pooled. Each line ends where a question of its side
had no further trial, so that all its points speak of the same questions; the band is the 95 %
interval. The lines of `best-of-n` are grey, those of learners coloured. A line a side is printed:
questions solved after so many trials; of the trials 1 to 4, 5 to 8 and so on at a question that was
not solved before, how many solve it; their tokens; and of questions that 16 trials leave unsolved,
how many different answers these gave. Where all answers have scores: their mean by rounds of eight
trials, and the best score of a question, mean over questions.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fttt.report.plots import LIGHT, MARKERS, SIDE_COLOURS, STYLE, Curve, curves, save
from fttt.report.scores import best_scores
from fttt.report.sides import Side, form_sides
from fttt.store import Run, solved_within
from fttt.types import Trial

ROUND = 8
SHOWN = (1, 4, 8, 12, 16, 20, 24, 32)
GREYS = ("#c3c8ce", "#969da6", "#1b2026", "#b0a08a")


def whole(side: Side, curve: Curve) -> int:
    """Trials that every unsolved question of a side has had."""
    ids = set(side.ids)
    records = [r for run in side.runs for r in run.records if r.question.id in ids]
    had = [len(r.trials) for r in records if not solved_within(r.trials)]
    return min([*had, len(curve.budgets)])


def rounds(trials: Iterable[Trial]) -> str:
    """Mean score of each round of eight trials of a question, of those that are still open."""
    scores: dict[int, list[float]] = defaultdict(list)
    for trial in trials:
        scores[trial.trial // ROUND].append(trial.score or 0.0)
    return " ".join(f"{np.mean(scores[n]):.3f}" for n in sorted(scores))


def say(task: str, side: Side) -> None:
    """Print what a side solved, by trials, and how its attempts changed on the way."""
    ids = set(side.ids)
    tried = [r.trials for run in side.runs for r in run.records if r.question.id in ids]
    cells = []
    for trials in SHOWN:
        solved = [bool(solved_within(own[:trials])) for own in tried]
        missing = any(
            len(own) < trials and not done for own, done in zip(tried, solved, strict=True)
        )
        cells.append("    -" if missing else f"{100 * np.mean(solved):5.1f}")
    print(f"{task}, {side.label}: solved @{'/'.join(map(str, SHOWN))} {' '.join(cells)}")
    groups: dict[int, list[tuple[bool, int]]] = defaultdict(list)
    for own in tried:
        for n, trial in enumerate(own):
            groups[n // 4].append((bool(solved_within([trial])), trial.usage.generated_tokens))
            if groups[n // 4][-1][0]:
                break
    means = [np.mean(groups[n], 0) for n in sorted(groups)]
    print("  solved by a trial, four by four:", *(f"{100 * share:.1f} %" for share, _ in means))
    print("  tokens a trial:", *(f"{tokens:.0f}" for _, tokens in means))
    if all(outcomes.scored for outcomes in side.outcomes):
        best = best_scores(side, "trials", [max(map(len, tried))])
        print(f"  mean score, eight by eight: {rounds(t for own in tried for t in own)}")
        print(f"  best score of a question: {best.mean():.3f}")
    unsolved = [own[:16] for own in tried if len(own) >= 16 and not solved_within(own[:16])]
    different = [len({(t.extracted or t.completion).strip() for t in own}) for own in unsolved]
    if different:
        print(f"  different answers of 16 to {len(different)} unsolved: {np.mean(different):.2f}")


def draw(tasks: dict[str, list[Run]]) -> Figure:
    """One panel a task, with the same sides in the same colours."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(tasks), 3.4), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, (task, runs) in zip(panels, tasks.items(), strict=True):
            questions = [{q.id for q in run.questions} for run in runs]
            shared = [q.id for q in runs[0].questions if all(q.id in own for own in questions)]
            plain = learning = 0
            for side in form_sides(runs, shared):
                say(task, side)
                (curve,) = curves([side], "trials")
                end, curve = whole(side, curve), curve.in_percent()
                if side.method == "best-of-n":
                    colour, width = GREYS[plain % len(GREYS)], 1.3
                    plain += 1
                else:
                    colour, width = LIGHT[SIDE_COLOURS[learning]], 1.8
                    learning += 1
                    axes.fill_between(
                        curve.budgets[:end], curve.low[:end], curve.high[:end],
                        color=colour, alpha=0.12, linewidth=0,
                    )  # fmt: skip
                marks = [n for n in (0, 1, 3, 7, 15, 31) if n < end]
                axes.plot(
                    curve.budgets[:end], curve.mean[:end], color=colour, linewidth=width,
                    marker=MARKERS[learning if side.method != "best-of-n" else 0], markersize=3.5,
                    markevery=marks, label=side.label,
                )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks(2 ** np.arange(6), [str(2**n) for n in range(6)])
            axes.set_ylim(bottom=0, top=100)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            axes.grid(axis="y")
            axes.set_title(f"{task}, {len(shared)} questions", fontsize=9)
            axes.set_xlabel("Trials a question")
        panels[0].set_ylabel("Questions solved")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("docs/learners.png"))
    options = parser.parse_args()
    tasks: dict[str, list[Run]] = defaultdict(list)
    for folder in options.folders:
        for config in sorted([*folder.glob("config.toml"), *folder.glob("*/config.toml")]):
            run = Run.open(config.parent)
            if run.method != "greedy":
                tasks[run.config["task"]].append(run)
    save(draw(dict(tasks)), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
