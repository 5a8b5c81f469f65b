"""The report on recursion: tables 4 to 6, figure 6 and the analysis of the paper's section 4, with our own runs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.metrics import EM
from shoulders.evaluation.recall import Samples
from shoulders.evaluation.report import (
    NONE,
    headline,
    interval_or_dash,
    metric_label,
    number,
    origin,
    percent,
    signed_interval,
)
from shoulders.evaluation.results import Result
from shoulders.paper.recursion_numbers import (
    CandidateScores,
    RecursionTable,
    RunScores,
    UnansweredSplit,
    candidate_scores,
    developed_by_em,
    metric_of,
    recursion_tables,
    split_of,
    split_unanswered,
)
from shoulders.paper.tables import section, write_page

CAPTIONS = {
    plots.DEVELOPMENT: "development score over training steps (figure 6 of the paper)",
    plots.PASSES: "score over passes through the frozen model",
}
WORDS = ("run", "LM", "method", "pretrain init?", "variant")  # columns
PRETRAINED = {True: "Yes", False: "No", None: NONE}
OTHER_METRIC = (
    "Scored by {metric}, not by exact match (EM): the wordings of these tasks are scored by it. Development scores are "
    "left out for the same reason."
)


def write_recursion_report(results: Sequence[Result], samples: Sequence[Samples], folder: Path) -> tuple[Path, str]:
    """Write tables, numbers and plots of runs and of sampled answers; return the path of the page and a summary.

    Args:
        samples: one for each first prompt that answers were sampled with; may be empty.

    Raises:
        UsageError, CorruptFile: the runs cannot be compared (`recursion_tables`), or not with the samples
            (`split_unanswered`).
        SaveFailed: the folder cannot be written.
    """
    tables = recursion_tables(results)
    candidates = candidate_scores(tables, samples)
    unanswered = [split_unanswered(one, results) for one in samples]
    summary = _summary(tables, unanswered)

    def parts(drawn: Sequence[str]) -> Sequence[str]:
        return [
            "# One frozen model, several passes",
            *summary,
            *map(_methods, tables),
            *drawn,
            *[_candidates(candidates, samples)] * bool(candidates),
            *map(_unanswered_section, unanswered),
        ]

    numbers = _as_json(tables, candidates, unanswered)
    page = write_page(folder, "recursion", lambda: _draw(results, tables, folder), parts, numbers, CAPTIONS)
    return page, "\n".join(summary)


def _summary(tables: Sequence[RecursionTable], unanswered: Sequence[UnansweredSplit]) -> list[str]:
    """Return which run is ahead on each split, and which on the questions that no sample answers."""
    lines = [f"On {table.split}: {headline([row.result for row in table.rows])}" for table in tables]
    for one in unanswered:
        scores = {name: never for name, (never, _) in one.scores.items() if never}
        if scores:
            best = max(scores, key=lambda name: scores[name].value)
            lines.append(f"{_share(one)} Ahead on these is {best}: {metric_label(one.metric)} {scores[best]}.")
    return lines


def _draw(results: Sequence[Result], measured: Sequence[RecursionTable], folder: Path) -> list[str]:
    place = {result.name: number for number, result in enumerate(results)}
    spent = {
        f"{metric_label(table.metric)} on {table.split}": [
            plots.PassesScore(
                row.result.name, place[row.result.name], row.method.passes, row.score.value, _curve(row.result)
            )
            for row in table.rows
        ]
        for table in measured
        if any(_curve(row.result) for row in table.rows)
    }
    untrained = {row.result.name for table in measured for row in table.rows if row.seen is None}
    shown = [replace(result, log=()) if result.name in untrained else result for result in results]
    in_em = all(developed_by_em(result) for result in shown if result.log)
    return plots.draw_recursion(shown, spent, f"development score{' (EM)' if in_em else ''}", folder)


def _curve(result: Result) -> list[tuple[float, float]]:
    """Return average passes and scores over thresholds, of a run with adaptive passes."""
    return [(point["passes"], point["score"]) for point in result.content.get("passes", {}).get("curve", ())]


def _methods(table: RecursionTable) -> str:
    """Return tables 4 and 6 of the paper in one."""
    title = f"Methods on {table.split}: {table.examples:,} examples (tables 4 and 6 of the paper)"
    note = "" if table.metric == EM.name else OTHER_METRIC.format(metric=table.metric)
    return section(title, [_cells(row, table) for row in table.rows], WORDS, note)


def _cells(row: RunScores, table: RecursionTable) -> dict[str, str]:
    """Return the cells of a run; without any development score, there is no column for it."""
    cells = {
        "run": row.result.name,
        "LM passes": f"{row.method.passes:.3g}",
        "LM": row.result.content["backbone"]["name"],
        "method": row.method.name,
        "Connector layers": number(row.method.layers),
        "pretrain init?": PRETRAINED[row.method.pretrained],
        "variant": row.method.variant or NONE,
        "trained parameters": number(row.result.content["trained"]),
        "examples seen": number(row.seen),
    }
    if any(other.development for other in table.rows):
        cells["best EM on dev"] = _development(row)
    cells[f"{metric_label(table.metric)} on {table.split} [95% interval]"] = str(row.score)
    if table.base:
        cells[f"over {table.base}, paired"] = signed_interval(row.gap)
    return cells


def _candidates(candidates: Sequence[CandidateScores], samples: Sequence[Samples]) -> str:
    """Return table 5 of the paper: recall of the samples, and scores of the textual recursions over them."""
    textual = [row.result for one in candidates for row in one.rows]
    metrics = {split_of(result): metric_label(metric_of(result)) for result in textual}
    recalls = {some.name: f"recall of {some.name} on {some.content['split']}" for some in samples}
    rows = [
        {
            "candidates": number(one.count),
            **{header: percent(one.recall.get(name)) for name, header in recalls.items()},
            **{f"{metric} on {split} [95% interval]": _textual(one, split) for split, metric in metrics.items()},
        }
        for one in candidates
    ]
    return section("Sampled candidates (table 5 of the paper)", rows, WORDS)


def _textual(one: CandidateScores, split: str) -> str:
    """Return the scores of the textual recursions on a split."""
    scores = [f"{row.score} ({row.result.name})" for row in one.rows if split_of(row.result) == split]
    return "; ".join(scores) or NONE


def _unanswered_section(one: UnansweredSplit) -> str:
    """Return the analysis at the end of the paper's section 4.2."""
    metric, answered = metric_label(one.metric), one.questions - one.unanswered
    rows = [
        {
            "run": name,
            f"{metric} on the {one.unanswered:,} no sample answers": interval_or_dash(never),
            f"{metric} on the other {answered:,}": interval_or_dash(other),
        }
        for name, (never, other) in one.scores.items()
    ]
    left_out = "\n\n".join(f"{name} is left out: {why}." for name, why in one.left_out.items())
    title = f"Questions beyond a single pass (section 4.2 of the paper)\n\n{_share(one)}"
    return section(title, rows, WORDS, left_out)


def _share(one: UnansweredSplit) -> str:
    """Return how many questions no sample answers."""
    share = 100 * one.unanswered / one.questions
    return (
        f"{one.unanswered:,} of {one.questions:,} questions ({share:.1f}%) have no right answer among "
        f"{one.samples.most} samples ({one.samples.name}, {one.samples.content['split']})."
    )


def _development(row: RunScores) -> str:
    return f"{row.development[0]:.1f} (step {row.development[1]:,})" if row.development else NONE


def _as_json(
    measured: Sequence[RecursionTable], candidates: Sequence[CandidateScores], split: Sequence[UnansweredSplit]
) -> dict[str, Any]:
    """Return the numbers of all tables, with the provenance of each run."""
    results = [row.result for table in measured for row in table.rows]
    return {
        "tables": [
            {
                "split": table.split,
                "metric": table.metric,
                "examples": table.examples,
                "base": table.base,
                "rows": [_row_as_json(row) for row in table.rows],
            }
            for table in measured
        ],
        "candidates": [
            {"count": one.count, "recall": one.recall, "runs": [row.result.name for row in one.rows]}
            for one in candidates
        ],
        "beyond": [
            {
                "samples": one.samples.name,
                "metric": one.metric,
                "unanswered": one.unanswered,
                "questions": one.questions,
                "scores": {
                    name: {"unanswered": never and asdict(never), "others": other and asdict(other)}
                    for name, (never, other) in one.scores.items()
                },
                "left_out": one.left_out,
            }
            for one in split
        ],
        "runs": {result.name: origin(result.content) for result in results},
        "samples": {one.samples.name: origin(one.samples.content) for one in split},
    }


def _row_as_json(row: RunScores) -> dict[str, Any]:
    development = row.development and {"score": row.development[0], "step": row.development[1]}
    return {
        "run": row.result.name,
        "method": asdict(row.method),
        "trained": row.result.content["trained"],
        "seen": row.seen,
        "development": development,
        "score": asdict(row.score),
        "gap": row.gap and asdict(row.gap),
    }
