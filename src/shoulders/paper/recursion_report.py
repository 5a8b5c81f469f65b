"""The report on recursion: tables 4 to 6, figure 6 and the analysis of the paper's section 4, with our own runs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.metrics import EM
from shoulders.evaluation.recall import Samples
from shoulders.evaluation.report import NONE, called, headline, markdown, number, or_none, origin, signed
from shoulders.evaluation.results import Result
from shoulders.paper.recursion_numbers import (
    Beyond,
    Candidates,
    Row,
    Table,
    beyond,
    by_candidates,
    developed_by_em,
    metric_of,
    split_of,
    tables,
)
from shoulders.store.files import save_failed, write_json

PAGE, NUMBERS = "recursion.md", "recursion.json"
ALT = {
    plots.DEVELOPMENT: "development score over training steps (figure 6 of the paper)",
    plots.PASSES: "score over passes through the frozen model",
}
WORDS = ("run", "LM", "method", "pretrain init?", "variant")  # columns
PRETRAINED = {True: "Yes", False: "No", None: NONE}


def write_recursion_report(results: Sequence[Result], samples: Sequence[Samples], folder: Path) -> tuple[Path, str]:
    """Write tables, numbers and plots of runs and of what was sampled; returns the path of the tables and a summary.

    Args:
        samples: one for each first prompt that answers were sampled under; none will do.

    Raises:
        UsageError, CorruptFile: the runs cannot be compared (`tables`), or not with the samples (`beyond`).
        SaveFailed: the folder cannot be written.
    """
    measured = tables(results)
    candidates = by_candidates(measured, samples)
    split = [beyond(one, results) for one in samples]
    told = _summary(measured, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(results, measured, folder)
        parts = [
            "# One frozen model, several passes",
            *told,
            *[_methods(table) for table in measured],
            *[f"![{ALT[name]}]({name})" for name in drawn],
            *[_candidates(candidates, samples)] * bool(candidates),
            *[_beyond(one) for one in split],
        ]
        (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    write_json(folder / NUMBERS, _as_json(measured, candidates, split))
    return folder / PAGE, "\n".join(told)


def _summary(measured: Sequence[Table], split: Sequence[Beyond]) -> list[str]:
    """Who is ahead on each split, and who answers most of what no sample answers."""
    told = [f"On {table.split}: {headline([row.result for row in table.rows])}" for table in measured]
    for one in split:
        scores = {name: never for name, (never, _) in one.scores.items() if never}
        if scores:
            best = max(scores, key=lambda name: scores[name].value)
            told.append(f"{_unanswered(one)} Ahead on these is {best}: {called(one.metric)} {scores[best]}.")
    return told


def _draw(results: Sequence[Result], measured: Sequence[Table], folder: Path) -> list[str]:
    place = {result.name: number for number, result in enumerate(results)}
    spent = {
        f"{called(table.metric)} on {table.split}": [
            plots.Spent(row.result.name, place[row.result.name], row.method.passes, row.score.value, _curve(row.result))
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
    """Of a run whose passes are adaptive."""
    return [(point["passes"], point["score"]) for point in result.content.get("passes", {}).get("curve", ())]


def _methods(table: Table) -> str:
    """Tables 4 and 6 of the paper; columns that nothing is known for are left out."""
    columns = {
        "run": [row.result.name for row in table.rows],
        "LM passes": [f"{row.method.passes:.3g}" for row in table.rows],
        "LM": [row.result.content["backbone"]["name"] for row in table.rows],
        "method": [row.method.name for row in table.rows],
        "Connector layers": [number(row.method.layers) for row in table.rows],
        "pretrain init?": [PRETRAINED[row.method.pretrained] for row in table.rows],
        "variant": [row.method.variant or NONE for row in table.rows],
        "trained parameters": [number(row.result.content["trained"]) for row in table.rows],
        "examples seen": [number(row.seen) for row in table.rows],
    }
    if any(row.development for row in table.rows):
        columns["best EM on dev"] = [_development(row) for row in table.rows]
    columns[f"{called(table.metric)} on {table.split} [95% interval]"] = [str(row.score) for row in table.rows]
    if table.base:
        columns[f"over {table.base}, paired"] = [signed(row.gap) for row in table.rows]
    title = f"## Methods on {table.split}: {table.examples:,} examples (tables 4 and 6 of the paper)"
    note = "" if table.metric == EM.name else f"\n\n{_no_em(table.metric)}"
    return f"{title}\n\n{markdown(columns, WORDS)}{note}"


def _no_em(metric: str) -> str:
    return (
        f"Scored by {metric}, not by exact match (EM): that is what the wordings of these tasks are scored by. "
        "Development scores are left out for the same reason."
    )


def _candidates(found: Sequence[Candidates], samples: Sequence[Samples]) -> str:
    """Table 5 of the paper: recall of the samples, and scores of the textual recursions over them."""
    columns = {"candidates": [number(one.count) for one in found]}
    for some in samples:
        values = [one.recall.get(some.name) for one in found]
        header = f"recall of {some.name} on {some.content['split']}"
        columns[header] = [NONE if value is None else f"{value:.1f}" for value in values]
    textual = [row.result for one in found for row in one.rows]
    for split, metric in {split_of(result): metric_of(result) for result in textual}.items():
        columns[f"{called(metric)} on {split} [95% interval]"] = [_textual(one, split) for one in found]
    return f"## Sampled candidates (table 5 of the paper)\n\n{markdown(columns, WORDS)}"


def _textual(one: Candidates, split: str) -> str:
    told = [f"{row.score} ({row.result.name})" for row in one.rows if split_of(row.result) == split]
    return "; ".join(told) or NONE


def _beyond(one: Beyond) -> str:
    """The analysis at the end of the paper's section 4.2."""
    metric, answered = called(one.metric), one.questions - one.unanswered
    columns = {
        "run": list(one.scores),
        f"{metric} on the {one.unanswered:,} no sample answers": [or_none(never) for never, _ in one.scores.values()],
        f"{metric} on the other {answered:,}": [or_none(other) for _, other in one.scores.values()],
    }
    left_out = "".join(f"\n\n{name} is left out: {why}." for name, why in one.left_out.items())
    title = "## Questions beyond a single pass (section 4.2 of the paper)"
    return f"{title}\n\n{_unanswered(one)}\n\n{markdown(columns, WORDS)}{left_out}"


def _unanswered(one: Beyond) -> str:
    share = 100 * one.unanswered / one.questions
    return (
        f"{one.unanswered:,} of {one.questions:,} questions ({share:.1f}%) have no right answer among "
        f"{one.samples.most} samples ({one.samples.name}, {one.samples.content['split']})."
    )


def _development(row: Row) -> str:
    return f"{row.development[0]:.1f} (step {row.development[1]:,})" if row.development else NONE


def _as_json(measured: Sequence[Table], candidates: Sequence[Candidates], split: Sequence[Beyond]) -> dict[str, Any]:
    """The numbers of all tables, with where each comes from."""
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


def _row_as_json(row: Row) -> dict[str, Any]:
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
