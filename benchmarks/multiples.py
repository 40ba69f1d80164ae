"""The figures of docs/results.md, questions solved against trials, and what lies behind them.

    python benchmarks/multiples.py outputs/temperatures outputs/learners-test --out FIGURE.png
    python benchmarks/multiples.py outputs/graded --scores --out FIGURE.png

Runs of a task that differ only in the seed are pooled. Each line ends where a question of its side
had no further trial, so that all its points speak of the same questions; the band is the 95 %
interval. The lines of `best-of-n` are grey, those of learners coloured. A line a side is printed:
questions solved after so many trials; of the trials 1 to 4, 5 to 8 and so on at a question that was
not solved before, how many solve it; their tokens; and of questions that 16 trials leave unsolved,
how many different answers these gave. Where all answers have scores: their mean by rounds of eight
trials, and the best score of a question, mean over questions. `--scores` draws that in place of
questions solved.

Of each learner a line more: after how many trials it is where the best `best-of-n` ends, with a
bootstrap over questions.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fttt.report.plots import LIGHT, MARKERS, SIDE_COLOURS, STYLE, Curve, Measure, curves, save
from fttt.report.scores import best_scores
from fttt.report.sides import Side, form_sides
from fttt.store import Run, solved_within
from fttt.types import Trial

ROUND = 8
RESAMPLES = 2000
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


def final(side: Side, measure: Measure) -> float:
    """What a side has reached after its last trial."""
    (curve,) = curves([side], "trials", measure)
    return float(curve.mean[-1])


def sooner(learner: Side, base: Side, measure: Measure) -> str:
    """How many times as soon as another side a learner is where that one ends.

    Trials of the one over those of the other, with the interval of a bootstrap over questions, for
    each of which both curves are drawn anew; 0 where the learner does not come so far.
    """
    trials = np.arange(1, int(base.observed("trials")) + 1)

    def values(side: Side) -> np.ndarray:
        if measure == "score":
            return best_scores(side, "trials", trials)
        return np.mean([own.within("trials", trials) for own in side.outcomes], axis=0)

    def ratio(rows: np.ndarray) -> float:
        there = np.flatnonzero(own_QT[rows].mean(0) >= its_QT[rows, -1].mean() - 1e-12)
        return len(trials) / trials[there[0]] if len(there) else 0.0

    own_QT, its_QT = values(learner), values(base)
    count = len(own_QT)
    resampled = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile([ratio(rows) for rows in resampled], [0.025, 0.975])
    own = ratio(np.arange(count))
    when = f"after {len(trials) / own:.0f}" if own else "in none"
    return (
        f"  {learner.label} is where {base.label} ends {when} of {len(trials)} trials: "
        f"{own:.2f} times as soon ({low:.2f} to {high:.2f})"
    )


def draw(tasks: dict[str, list[Run]], measure: Measure) -> Figure:
    """A panel for each task, with the same sides in the same colours."""
    columns = len(tasks) if len(tasks) <= 4 else 3
    rows = -(-len(tasks) // columns)
    with mpl.rc_context(STYLE):
        width = max(5.4, 3.0 * columns)  # room for the legend
        figure = Figure(figsize=(width, 0.6 + 2.8 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        panels = grid.ravel()
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        for axes, (task, runs) in zip(panels, tasks.items(), strict=False):
            questions = [{q.id for q in run.questions} for run in runs]
            shared = [q.id for q in runs[0].questions if all(q.id in own for own in questions)]
            plain = learning = 0
            sides = form_sides(runs, shared)
            for side in sides:
                say(task, side)
                (curve,) = curves([side], "trials", measure)
                end = whole(side, curve)
                curve = curve if measure == "score" else curve.in_percent()
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
                marks = [n for n in (0, 1, 3, 7, 15, 31, 63) if n < end]
                axes.plot(
                    curve.budgets[:end], curve.mean[:end], color=colour, linewidth=width,
                    marker=MARKERS[learning if side.method != "best-of-n" else 0], markersize=3.5,
                    markevery=marks, label=side.label,
                )  # fmt: skip
            bases = [side for side in sides if side.method == "best-of-n"]
            if bases:
                top = max(bases, key=lambda side: final(side, measure))
                for side in sides:
                    if side.method != "best-of-n":
                        print(sooner(side, top, measure))
            longest = max(int(side.observed("trials")) for side in sides)
            ticks = 2 ** np.arange(longest.bit_length())
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.set_ylim(bottom=0, top=1 if measure == "score" else 100)
            if measure == "solved":
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            axes.grid(axis="y")
            axes.set_title(f"{task}, {len(shared)} questions", fontsize=9)
            axes.set_xlabel("Trials a question")
        for axes in grid[:, 0]:
            axes.set_ylabel("Best score" if measure == "score" else "Questions solved")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, columns + 1), fontsize=8
        )
        return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("docs/learners.png"))
    parser.add_argument("--scores", action="store_true", help="best scores, not questions solved")
    options = parser.parse_args()
    tasks: dict[str, list[Run]] = defaultdict(list)
    for folder in options.folders:
        for config in sorted([*folder.glob("config.toml"), *folder.glob("*/config.toml")]):
            run = Run.open(config.parent)
            if run.method != "greedy":
                tasks[run.config["task"]].append(run)
    save(draw(dict(tasks), "score" if options.scores else "solved"), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
