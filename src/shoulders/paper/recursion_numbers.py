"""Recursion compared with single passes: the numbers of the paper's section 4, from results and samples.

Methods are named as in the paper's tables 4 and 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoulders.answering.models import FEW_SHOT, INSTRUCTED, UNTRAINED
from shoulders.errors import CorruptFile, UsageError
from shoulders.evaluation.metrics import EM
from shoulders.evaluation.recall import Samples
from shoulders.evaluation.report import check_comparable
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Interval, Measured, average_interval, difference_interval
from shoulders.evidence.base import DEMONSTRATIONS
from shoulders.scaffolds.base import KINDS
from shoulders.scaffolds.input_prompt import SELF
from shoulders.scaffolds.recursion import RecursionShape

BARE, PROMPT_TUNED, TEXTUAL = "bare", "Prompt-tuned", "Textual-recursive"
# The paper's names of kinds of scaffolds, where they differ from the label.
ONE_PASS = {**{way: way for way in UNTRAINED}, "soft_prompt": PROMPT_TUNED}
INNER = {BARE: "", "soft_prompt": " under a soft prompt"}
DASH = "\N{EN DASH}"  # as the paper writes LM-Connector-LM
ADAPTIVE = {"average", "budget", "rule", "curve"}  # keys of a result of adaptive passes


@dataclass(frozen=True, slots=True)
class Method:
    """The method of a run.

    Attributes:
        name: name in the paper's tables.
        passes: average number of passes through the frozen model for a question.
        layers: blocks of a Connector; None without one.
        pretrained: training started from a trained scaffold; None if nothing is trained, or several runs are combined.
        variant: choices that the paper's tables do not have: the Connector's start, the rule for a second pass.
        candidates: answers sampled for a question in textual recursion, or 0.
    """

    name: str
    passes: float
    layers: int | None = None
    pretrained: bool | None = None
    variant: str = ""
    candidates: int = 0


def method_of(result: Result) -> Method:
    """Return the method of a result, by its recipe.

    Raises:
        UsageError: it was measured by the recipe of another kind of scaffold.
        CorruptFile: its numbers of adaptive passes are broken.
    """
    if adaptive := _adaptive(result):  # several scaffolds: the recipe says only how they were measured
        name = f"Adaptive (budget {adaptive['budget']:g})"
        return Method(name, adaptive["average"], variant=f"decided by {adaptive['rule']}")
    if count := result.content.get("majority"):
        return Method(f"Majority of {count} samples", 1, candidates=0, variant="no second pass")
    recipe = result.content["recipe"]
    choice = recipe["scaffold"]
    kind = kind_of(result.content)
    if kind not in (choice["kind"], BARE):
        raise UsageError(
            f"{result.name} is a scaffold of kind {kind} and was measured by a recipe with scaffold.kind="
            f"{choice['kind']}, which does not describe it: measure it by its own recipe (leave --recipe out)"
        )
    shape = RecursionShape(**choice.get("recursion", {})) if kind == "recursion" else None
    candidates = _candidates(recipe)
    way = untrained_way(result.content) if kind == BARE else kind
    if kind != BARE and choice.get("encoder") == SELF:
        way = f"LM{DASH}{label_of(kind)}{DASH}LM"
    name = _method_name(way, choice.get("inner", {}).get("kind", BARE), shape, candidates)
    passes = result.content.get("scaffold", {}).get("passes", shape.passes if shape else 1) + bool(candidates)
    variant = [part for part in ("residual", "copied", "shared") if shape and getattr(shape, part)]
    if shape and not shape.whole:
        layers = f"layers {shape.into + 1} to {shape.out_of or 'last'}"
        variant.append(f"{shape.repeat.replace('_', ' ')} {layers} again" if shape.repeat else layers)
    if shape and shape.rank and shape.places:
        variant.append(f"{'keys and values of ' * shape.keys_values}rank {shape.rank}")
    return Method(
        name,
        passes,
        layers=shape.layers if shape and shape.places and not shape.rank else None,
        pretrained=None if kind == BARE else bool(choice.get("start")),
        variant=", ".join(variant),
        candidates=candidates,
    )


def kind_of(content: Mapping[str, Any]) -> str:
    """Return the kind of the measured scaffold or rival; older results hold only the number of trained parameters."""
    if "scaffold" in content:
        return content["scaffold"]["kind"]
    return content["recipe"]["scaffold"]["kind"] if content["trained"] else BARE


def untrained_way(content: Mapping[str, Any]) -> str:
    """Return how a result's frozen model was asked, of the names in `UNTRAINED`."""
    recipe = content["recipe"]
    if (recipe.get("evidence") or {}).get("kind") == DEMONSTRATIONS:
        return FEW_SHOT
    return INSTRUCTED if recipe.get("backbone", {}).get("chat") == "true" else BARE


def label_of(kind: str) -> str:
    """Return the label of a kind of scaffold; the kind itself if the package that it comes from is not installed."""
    return KINDS[kind].label if kind in KINDS else kind


def _candidates(recipe: Mapping[str, Any]) -> int:
    """Return the number of answers sampled for each question; 0 without textual recursion."""
    evidence = recipe.get("evidence") or {}
    return evidence.get("count", 0) if evidence.get("kind") == "candidates" else 0


def _method_name(kind: str, inner: str, shape: RecursionShape | None, candidates: int) -> str:
    under = INNER.get(inner, f" under {label_of(inner)}")
    own = f"{_passes_and_connectors(shape)}{under}" if shape else ONE_PASS.get(kind, label_of(kind))
    if not candidates:
        return own
    beside = "" if own == PROMPT_TUNED else f", {own}"  # the paper's own method is prompt-tuned in both passes
    return f"{TEXTUAL} (n={candidates}){beside}"


def _passes_and_connectors(shape: RecursionShape) -> str:
    """Return the passes and Connectors in their order, like LM-Connector-LM."""
    parts = ["LM", "Connector"] * (shape.passes - 1) + ["LM"]
    return DASH.join(["Connector"] * shape.before + parts + ["Connector"] * shape.after)


def _adaptive(result: Result) -> Mapping[str, Any] | None:
    """Return a result's numbers of adaptive passes; None if every question was given the same number of passes."""
    said = result.content.get("passes")
    if said is not None and not (isinstance(said, dict) and set(said) >= ADAPTIVE):
        raise CorruptFile(f"the results {result.name} lack some of `passes`: {', '.join(sorted(ADAPTIVE))}")
    return said


@dataclass(frozen=True, slots=True)
class RunScores:
    """One run in tables 4 and 6 of the paper.

    Attributes:
        score: score by the metric of its table.
        gap: paired difference from the first prompt-tuned run; None for that run, or without one.
        development: best development score and its step, if it is EM like the score.
        seen: training examples seen, repeated ones counted again; None if nothing is trained.
    """

    result: Result
    method: Method
    score: Interval
    gap: Interval | None
    development: tuple[float, int] | None
    seen: int | None


@dataclass(frozen=True, slots=True)
class RecursionTable:
    """Runs measured on the same examples of one split.

    Attributes:
        metric: the metric of the wordings: "em", or several names if they differ.
        base: name of the run that differences are from; None without a prompt-tuned run.
    """

    split: str
    metric: str
    base: str | None
    rows: Sequence[RunScores]

    @property
    def examples(self) -> int:
        """Number of predictions made by each run."""
        return self.rows[0].result.content["examples"]


@dataclass(frozen=True, slots=True)
class CandidateScores:
    """Recall and scores with a number of sampled answers (table 5 of the paper).

    Attributes:
        count: number of sampled answers for a question.
        recall: percentage of questions with a right answer among them, by name of the samples.
        rows: textual recursions over that many.
    """

    count: int
    recall: Mapping[str, float]
    rows: Sequence[RunScores]


@dataclass(frozen=True, slots=True)
class UnansweredSplit:
    """Scores on questions that no sample answers, and on the others (the paper, section 4.2).

    Attributes:
        metric: as in `RecursionTable`.
        unanswered: number of questions that no sample answers.
        questions: number of all questions.
        scores: by run, the scores on the unanswered questions and on the others; None if there are none.
        left_out: by run, the reason why its scores cannot be split.
    """

    samples: Samples
    metric: str
    unanswered: int
    questions: int
    scores: Mapping[str, tuple[Interval | None, Interval | None]]
    left_out: Mapping[str, str]


def recursion_tables(results: Sequence[Result]) -> list[RecursionTable]:
    """Return a table for each split that runs were measured on, in the order of the results.

    Raises:
        UsageError: there is no result; two of one split were measured on different examples or by different metrics;
            or see `method_of`.
    """
    check_comparable(results[:1])
    return [_table(split, some) for split, some in by_split(results).items()]


def by_split(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return results by the split that they were measured on, in their order."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(split_of(result), []).append(result)
    return found


def candidate_scores(measured: Sequence[RecursionTable], samples: Sequence[Samples]) -> list[CandidateScores]:
    """Return recall and scores for each number of sampled answers that was measured."""
    textual = [row for table in measured for row in table.rows if row.method.candidates]
    counts = {count for one in samples for count in one.recall} | {row.method.candidates for row in textual}
    return [
        CandidateScores(
            count,
            {one.name: one.recall[count] for one in samples if count in one.recall},
            [row for row in textual if row.method.candidates == count],
        )
        for count in sorted(counts)
    ]


def split_unanswered(samples: Samples, results: Sequence[Result]) -> UnansweredSplit:
    """Split each run's score into questions that no sample answers, and the others.

    Raises:
        UsageError: no run was measured on the questions that were sampled for.
        CorruptFile: see `Samples.unanswered`.
    """
    split = {result.name: (result, rows) for result in results if (rows := samples.unanswered(result)) is not None}
    if not split:
        raise UsageError(
            f"{samples.name} was sampled for other examples than any of the runs was measured on: measure one on them "
            f"(shoulders evaluate ... test.split={samples.content['split']} --out), or sample for the runs' split"
        )
    first, unanswered = next(iter(split.values()))
    parts = {name: (_part_score(*both, never=True), _part_score(*both, never=False)) for name, both in split.items()}
    return UnansweredSplit(
        samples,
        metric=metric_of(first),
        unanswered=sum(map(sum, unanswered)),
        questions=sum(map(len, unanswered)),
        scores=parts,
        left_out={result.name: _reason_left_out(result, samples) for result in results if result.name not in split},
    )


def split_of(result: Result) -> str:
    """Return the split that a result was measured on."""
    return result.content["recipe"]["test"]["split"]


def metric_of(result: Result) -> str:
    """Return the metric that decides on the score: one name, or several if wordings differ."""
    return ", ".join(dict.fromkeys(row["metric"] for row in result.content["wordings"]))


def check_same_metric(results: Sequence[Result]) -> None:
    """Raise `UsageError` for results of different examples (`check_comparable`) or different metrics."""
    check_comparable(results)
    for result in results:
        if metric_of(result) != metric_of(results[0]):
            raise UsageError(
                f"{result.name} is scored by {metric_of(result)} and {results[0].name} by {metric_of(results[0])}: "
                "measure both with the same version (shoulders evaluate ... --out)"
            )


def _table(split: str, results: Sequence[Result]) -> RecursionTable:
    check_same_metric(results)
    methods = {result.name: method_of(result) for result in results}
    base = next((result for result in results if methods[result.name].name == PROMPT_TUNED), None)
    rows = [_row(result, methods[result.name], base) for result in results]
    return RecursionTable(split, metric_of(results[0]), base and base.name, rows)


def _row(result: Result, method: Method, base: Result | None) -> RunScores:
    return RunScores(
        result,
        method,
        score=average_interval(result.measured),
        gap=difference_interval(result.measured, base.measured) if base and base is not result else None,
        development=_best_development(result) if developed_by_em(result) else None,
        seen=None if method.pretrained is None else result.seen,
    )


def _best_development(result: Result) -> tuple[float, int] | None:
    """Return the best development score in a run's log, and the step at which it was first reached."""
    best = max(result.development, key=lambda one: one[1], default=None)
    return best and (best[1], best[0])


def developed_by_em(result: Result) -> bool:
    """Whether development scores are EM: their wordings are among the measured ones, which are all scored by EM."""
    plans = result.content["recipe"]
    wordings = [plans[name]["wordings"] for name in ("development", "test")]
    same = wordings[0] == wordings[1] or 0 < wordings[0] <= (wordings[1] or wordings[0])
    return same and metric_of(result) == EM.name


def _reason_left_out(result: Result, samples: Samples) -> str:
    if "examples_hash" not in result.content:
        return "its results do not say which examples they are of"
    return (
        f"it was measured on other examples ({split_of(result)}, {result.content['examples']}) than were sampled for "
        f"({samples.content['split']}, {samples.content['examples']})"
    )


def _part_score(result: Result, unanswered: Sequence[Sequence[bool]], *, never: bool) -> Interval | None:
    """Return the score on the examples that no sample answers, or on the others; empty wordings are left out."""
    kept = [
        Measured(
            row.task,
            row.wording,
            row.metric,
            [values for values, hopeless in zip(row.rows, some, strict=True) if hopeless == never],
        )
        for row, some in zip(result.measured, unanswered, strict=True)
    ]
    measured = [row for row in kept if row.rows]
    return average_interval(measured) if measured else None
