"""The report on a suite: tables 1, 7 and 9 and figure 3 of the paper's section 2 and appendix A, with our own runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.report import NONE, gigabytes, number, origin, signed_interval
from shoulders.evaluation.results import Result
from shoulders.paper.suite_numbers import (
    ON_OFF,
    DataSet,
    ForgettingResult,
    LengthScores,
    MethodScores,
    SuiteTable,
    development_curves,
    suite_tables,
    untrained_scores,
)
from shoulders.paper.tables import section, write_page

CAPTIONS = {
    plots.SUITE: "score of each method by cluster",
    plots.DEVELOPMENT: "average development score over training examples (figure 3 of the paper)",
}
WORDS = ("method", "LM", "cluster", "data set", "metric", "LM unchanged", "row over column")  # columns
NOTE = (
    "The score of a data set is the median over its templates, the score of a cluster is the mean over its data sets, "
    "and the average is over data sets. With several seeds, scores are means over them. Intervals are 95% bootstraps "
    "over examples, paired for differences; they do not include the variance between seeds. Perplexity on is that of "
    "the model with what was trained, off with that taken off again, which full fine-tuning cannot be."
)
SPREAD = "In brackets: the lowest and the highest score in a template."
UNCHANGED = {True: "yes", False: "no", None: NONE}


def write_suite_report(
    results: Sequence[Result], forgotten: Sequence[ForgettingResult], folder: Path
) -> tuple[Path, str]:
    """Write tables, numbers and plots of methods on a suite; return the path of the page and a summary.

    Args:
        results: of any methods; runs that differ only in the seed are one method.
        forgotten: what some of the runs made their models forget; may be empty.

    Raises:
        UsageError: the results cannot be compared (`suite_tables`).
        SaveFailed: the folder cannot be written.
    """
    tables, curves = suite_tables(results, forgotten), development_curves(results)
    summary = [_summary(table) for table in tables]
    scores = {
        table.split: {row.name: {"average": row.average.value, **row.clusters} for row in table.rows}
        for table in tables
    }

    def draw() -> Sequence[str]:
        return plots.draw_suite(scores, {one.name: one.seeds for one in curves}, untrained_scores(results), folder)

    def parts(drawn: Sequence[str]) -> Sequence[str]:
        return ["# Methods on a suite", *summary, NOTE, *[part for table in tables for part in _parts(table)], *drawn]

    numbers = {
        "tables": [_as_json(table) for table in tables],
        "curves": [asdict(one) for one in curves],
        "runs": {result.name: origin(result.content) for result in results},
        "forgotten": {one.name: origin(one.content) for one in forgotten},
    }
    return write_page(folder, "suite", draw, parts, numbers, CAPTIONS), "\n".join(summary)


def _summary(table: SuiteTable) -> str:
    """Return which method is ahead, and its differences from the others."""
    first, *others = sorted(table.rows, key=lambda row: row.average.value, reverse=True)
    sentences = [f"On {table.split}: {first.name} is ahead with {first.average.value:.1f}."]
    for other in others:
        gap = first.average.over(other.average)
        sentences.append(f"Over {other.name}: {signed_interval(gap)}{'' if gap.low > 0 else ', which may be chance'}.")
    return " ".join(sentences)


def _parts(table: SuiteTable) -> list[str]:
    """Return the tables of one split."""
    split, rows, content = table.split, table.rows, table.rows[0].content
    title = f"Methods on {split}: {content['examples']:,} examples"
    found = [section(title, [_method(row) for row in rows], WORDS, known_only=True), _clusters(table)]
    if len(rows) > 1:
        differences = [_differences(row, rows) for row in rows]
        found.append(section(f"Differences on {split}: row over column, paired", differences, WORDS))
    found.append(_data_sets(table))
    if unmeasured := content.get("unmeasured"):
        found.append(f"Not measured, because they have no such split: {', '.join(unmeasured)}.")
    if table.lengths:
        title = f"By prompt length on {split} (table 9 of the paper)"
        found.append(section(title, _length_rows(table.lengths), WORDS))
    return found


def _method(row: MethodScores) -> dict[str, str]:
    """Return the cells of a method's score and costs."""
    return {
        "method": row.name,
        "LM": row.content["backbone"]["name"],
        "average [95% interval]": str(row.average.interval),
        "by seed": ", ".join(f"{seed}: {score:.1f}" for seed, score in row.seeds.items()),
        "trained parameters": number(row.content["trained"]),
        "examples seen": number(row.seen),
        "seconds": NONE if row.seconds is None else f"{row.seconds:,.0f}",
        "peak memory, GB": gigabytes(row.peak_bytes),
        **{
            f"perplexity {name} / before on {text}": NONE if ratios[name] is None else f"{ratios[name]:.4f}"
            for text, ratios in row.ratios.items()
            for name in ON_OFF
        },
        "LM unchanged": UNCHANGED[row.unchanged],
    }


def _clusters(table: SuiteTable) -> str:
    """Return table 1 of the paper."""
    rows = table.rows
    clusters = [data_set.cluster for data_set in rows[0].data_sets]
    cells = [
        {
            "cluster": name,
            "data sets": str(clusters.count(name)),
            **{row.name: f"{row.clusters[name]:.1f}" for row in rows},
        }
        for name in rows[0].clusters
    ]
    average = {row.name: f"**{row.average.value:.1f}**" for row in rows}
    cells.append({"cluster": "**average over data sets**", "data sets": str(len(clusters)), **average})
    return section(f"By cluster on {table.split} (table 1 of the paper)", cells, WORDS)


def _differences(row: MethodScores, others: Sequence[MethodScores]) -> dict[str, str]:
    gaps = {other.name: NONE if other is row else signed_interval(row.average.over(other.average)) for other in others}
    return {"row over column": row.name, **gaps}


def _data_sets(table: SuiteTable) -> str:
    """Return table 7 of the paper, with the spread over templates."""
    rows, first = table.rows, table.rows[0].data_sets
    trained_on = _trained_on(rows, [one.name for one in first])
    by_method = [{one.name: one for one in row.data_sets} for row in rows]
    cells = [
        {
            "cluster": one.cluster,
            "data set": one.name,
            "metric": one.metric,
            "templates": number(len(one.templates)),
            "examples": number(one.examples),
            **{header: counts[one.name] for header, counts in trained_on.items()},
            **{row.name: _spread(sets[one.name]) for row, sets in zip(rows, by_method, strict=True)},
        }
        for one in first
    ]
    note = SPREAD if any(len(one.templates) > 1 for one in first) else ""
    return section(f"By data set on {table.split} (table 7 of the paper)", cells, WORDS, note)


def _trained_on(rows: Sequence[MethodScores], data_sets: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Return the training examples of each data set, by column: one if all methods saw the same, else one a method."""
    counts = {
        row.name: {name: number(row.trained_on.get(name, 0)) for name in data_sets} for row in rows if row.trained_on
    }
    first, *others = counts.values() or [{}]
    if counts and all(other == first for other in others):
        return {"trained on": first}
    return {f"trained on, {name}": own for name, own in counts.items()}


def _spread(one: DataSet) -> str:
    lowest, highest = one.spread
    return f"{one.score:.1f} [{lowest:.1f}, {highest:.1f}]" if len(one.templates) > 1 else f"{one.score:.1f}"


def _length_rows(lengths: LengthScores) -> list[dict[str, str]]:
    """Return the rows of table 9 of the paper."""
    return [
        {
            "prompt length": number(length),
            **{name: f"{scores[name].average.value:.1f}" if name in scores else NONE for name in lengths.columns},
        }
        for length, scores in lengths.scores.items()
    ]


def _as_json(table: SuiteTable) -> dict[str, Any]:
    lengths = table.lengths
    return {
        "split": table.split,
        "metric": table.metric,
        "examples": table.rows[0].content["examples"],
        "unmeasured": table.rows[0].content.get("unmeasured", []),
        "methods": [_row_as_json(row) for row in table.rows],
        "differences": [
            {"method": row.name, "over": other.name, "gap": asdict(row.average.over(other.average))}
            for row in table.rows
            for other in table.rows
            if row is not other
        ],
        "lengths": lengths
        and [
            {"length": length, "column": name, "method": row.name, "average": row.average.value}
            for length, scores in lengths.scores.items()
            for name, row in scores.items()
        ],
    }


def _row_as_json(row: MethodScores) -> dict[str, Any]:
    return {
        "method": row.name,
        "runs": [run.name for run in row.runs],
        "average": asdict(row.average.interval),
        "seeds": [{"seed": seed, "average": score} for seed, score in row.seeds.items()],
        "clusters": row.clusters,
        "data_sets": [asdict(one) for one in row.data_sets],
        "trained": row.content["trained"],
        "seen": row.seen,
        "trained_on": row.trained_on,
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "perplexity_ratio": row.ratios,
        "unchanged": row.unchanged,
    }
