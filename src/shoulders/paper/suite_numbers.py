"""Methods compared on a suite: the numbers of the paper's tables 1, 7 and 9 and of figure 3, computed from results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from shoulders.data.mixture import used
from shoulders.data.tasks import DEV
from shoulders.errors import UsageError
from shoulders.evaluation.report import check_comparable
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Average, average
from shoulders.paper.recursion_numbers import BARE, by_split, check_same_metric, kind_of, label_of, metric_of
from shoulders.scaffolds.base import KINDS
from shoulders.store.files import flat, read_json

LABELS = {"adaptive": "adaptive passes", "lora": "LoRA", "full": "full fine-tuning"}  # scaffolds by their label
SEED, LENGTH = "training.seed", "scaffold.length"
RATES = ("training.learning_rate", "training.base_learning_rate", "rival.learning_rate")
# Values that do not make another method: names, the seed, and how it was measured (the examples are the same).
IGNORED = ("name", "about", SEED, "test.")
WITHOUT_TRAINING = ("backbone.", "evidence.")  # all that matters where nothing is trained
FORGETTING_KEYS = {"before", "after", "ratio", "unchanged", "text"}


@dataclass(frozen=True, slots=True)
class ForgettingResult:
    """What a training made a language model forget, as `shoulders forget --out` keeps it."""

    name: str
    content: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What was read, by the last part of its name."""
        return self.content["text"].rstrip("/").rsplit("/", maxsplit=1)[-1]


@dataclass(frozen=True, slots=True)
class Template:
    """A data set in one template, as one method does in it."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as one method does on it; of several seeds, their mean.

    Attributes:
        score: the median over its templates.
        templates: the score in each.
    """

    name: str
    cluster: str
    metric: str
    examples: int
    score: float
    templates: Sequence[Template]

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest score in a template."""
        scores = [template.score for template in self.templates]
        return min(scores), max(scores)


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One method: its runs, which differ in the seed alone.

    Attributes:
        average: over data sets; of several seeds, their mean.
        forgotten: what its runs made their language models forget, in the order of the runs.
    """

    name: str
    runs: Sequence[Result]
    average: Average
    forgotten: Sequence[ForgettingResult]

    @property
    def content(self) -> Mapping[str, Any]:
        """Of the first run."""
        return self.runs[0].content

    @property
    def seeds(self) -> dict[int, float]:
        """The average of each seed."""
        return {seed_of(run): run.content["average"] for run in self.runs}

    @property
    def clusters(self) -> dict[str, float]:
        """The mean over the data sets of each cluster."""
        return {name: mean(run.content["clusters"][name] for run in self.runs) for name in self.content["clusters"]}

    @property
    def data_sets(self) -> list[DataSet]:
        """Each data set of the suite."""
        return [self._data_set(name) for name in self.content["tasks"]]

    @property
    def seen(self) -> int | None:
        """Training examples, one that came twice counted twice; None where nothing is trained."""
        return self.runs[0].seen if self.content["trained"] else None

    @property
    def trained_on(self) -> dict[str, int]:
        """Training examples by data set, of the first run; empty where nothing was trained, or results do not say."""
        return {name: used(counts) for name, counts in self.content.get("trained_on", {}).items()}

    @property
    def seconds(self) -> float | None:
        """That the training took, on average over the seeds; None where results do not say."""
        costs = self._costs("seconds")
        return mean(costs) if costs else None

    @property
    def peak_bytes(self) -> int | None:
        """Of memory that the training took, at most; None where results do not say."""
        return max(self._costs("peak_bytes"), default=None)

    @property
    def ratios(self) -> dict[str, float]:
        """Perplexity after the training over that before it, by text; of several seeds, their mean."""
        found: dict[str, list[float]] = {}
        for one in self.forgotten:
            found.setdefault(one.text, []).append(one.content["ratio"])
        return {text: mean(ratios) for text, ratios in found.items()}

    @property
    def unchanged(self) -> bool | None:
        """Whether no bit of the language model moved in any run; None where that was not measured."""
        return all(one.content["unchanged"] for one in self.forgotten) if self.forgotten else None

    def _costs(self, what: str) -> list[Any]:
        costs = [run.content.get("cost", {}).get(what) for run in self.runs]
        return [cost for cost in costs if cost is not None]

    def _data_set(self, name: str) -> DataSet:
        wordings = [[row for row in run.content["wordings"] if row["task"] == name] for run in self.runs]
        templates = [
            Template(rows[0]["wording"], mean(row["scores"][row["metric"]] for row in rows))
            for rows in zip(*wordings, strict=True)
        ]
        first = wordings[0]
        metrics = ", ".join(dict.fromkeys(row["metric"] for row in first))
        examples = sum(row["examples"] for row in first)
        score = mean(run.content["tasks"][name] for run in self.runs)
        return DataSet(name, first[0]["cluster"], metrics, examples, score, templates)


@dataclass(frozen=True, slots=True)
class LengthScores:
    """Scores by length of the prompt (the paper, table 9).

    Attributes:
        scores: by length and by method but for its length; on the development part the best learning rate stands for
            all (the paper, section 2.2), elsewhere each has a column of its own.
    """

    columns: Sequence[str]
    scores: Mapping[int, Mapping[str, MethodScores]]


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """The methods that were measured on one split, all on the same examples."""

    split: str
    metric: str
    rows: Sequence[MethodScores]
    lengths: LengthScores | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Development scores of a method along its training (the paper, figure 3).

    Attributes:
        seeds: (training examples seen, average score) of each run.
    """

    name: str
    seeds: Sequence[Sequence[tuple[int, float]]]


def read_forgetting(path: Path, name: str) -> ForgettingResult | None:
    """What `shoulders forget --out` wrote; None for a folder or a file of another kind, or none at all."""
    if not path.is_file():
        return None
    content = read_json(path)
    return ForgettingResult(name, content) if set(content) >= FORGETTING_KEYS else None


def suite_tables(results: Sequence[Result], forgotten: Sequence[ForgettingResult] = ()) -> list[SuiteTable]:
    """A table for each split that something was measured on, in the order of the results.

    Raises:
        UsageError: there is no result; two of one split were measured on different examples or by different metrics, or
            are of one method and one seed; or something was forgotten by a run that is not there.
    """
    check_comparable(results[:1])
    _check_known(forgotten, results)
    names = method_names(results)
    return [_table(split, some, names, forgotten) for split, some in by_split(results).items()]


def method_names(results: Sequence[Result]) -> dict[str, str]:
    """For each result by its name, what its method is called; runs that differ in the seed alone are of one.

    Methods are named by what they are, and by the recipe's values that tell them apart where that is not enough.
    """
    return _distinguished({result.name: (_method_label(result, results), method_values(result)) for result in results})


def method_values(result: Result) -> dict[str, Any]:
    """What makes a method: the recipe's values by dotted key, without those of names, seed and measuring.

    What is empty, false or 0 is left out: recipes from before there was such a value lack it.
    """
    values = flat(result.content["recipe"])
    kept = {key: value for key, value in values.items() if value and not key.startswith(IGNORED)}
    if kind_of(result.content) == BARE:
        kept = {key: value for key, value in kept.items() if key.startswith(WITHOUT_TRAINING)}
    return {**kept, "backbone.fingerprint": result.content["backbone"]["fingerprint"][:12]}


def seed_of(result: Result) -> int:
    """Of its training."""
    return result.content["recipe"]["training"]["seed"]


def development_curves(results: Sequence[Result]) -> list[Curve]:
    """The methods that were trained and scored on the way; a run that was measured twice counts once."""
    names = method_names(results)
    found: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for result in results:
        batch = result.content["recipe"]["training"]["batch_size"]
        if result.content["trained"] and result.development:
            points = [(step * batch, score) for step, score in result.development]
            found.setdefault(names[result.name], {})[seed_of(result)] = points
    return [Curve(name, list(seeds.values())) for name, seeds in found.items()]


def untrained_scores(results: Sequence[Result]) -> dict[str, float]:
    """By method, the score of those without a curve that were measured as the others' development_curves were."""
    plans = [_measured_part(result.content["recipe"]["development"]) for result in results if result.development]
    names = method_names(results)
    drawn = {curve.name for curve in development_curves(results)}
    found: dict[str, list[float]] = {}
    for result in results:
        plan = _measured_part(result.content["recipe"]["test"])
        if plans and names[result.name] not in drawn and all(plan == other for other in plans):
            found.setdefault(names[result.name], []).append(result.content["average"])
    return {name: mean(scores) for name, scores in found.items()}


def _measured_part(plan: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides on the examples that are measured."""
    return tuple(plan[key] for key in ("split", "limit", "wordings", "seed"))


def _table(
    split: str, results: Sequence[Result], names: Mapping[str, str], forgotten: Sequence[ForgettingResult]
) -> SuiteTable:
    check_same_metric(results)
    runs: dict[str, list[Result]] = {}
    for result in results:
        runs.setdefault(names[result.name], []).append(result)
    rows = [_row(name, some, forgotten) for name, some in runs.items()]
    return SuiteTable(split, metric_of(results[0]), rows, _lengths(rows, split))


def _row(name: str, runs: Sequence[Result], forgotten: Sequence[ForgettingResult]) -> MethodScores:
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if seed_of(run) == seed_of(other):
                raise UsageError(
                    f"{other.name} and {run.name} are of one method ({name}) and one seed ({seed_of(run)}): name one "
                    "of them, or measure each by its own recipe (leave --recipe out)"
                )
    own = [one for run in runs for one in forgotten if _scaffold(one.content) == _scaffold(run.content)]
    return MethodScores(name, runs, average([run.measured for run in runs]), own)


def _check_known(forgotten: Sequence[ForgettingResult], results: Sequence[Result]) -> None:
    known = [_scaffold(result.content) for result in results]
    for one in forgotten:
        if _scaffold(one.content) not in known:
            raise UsageError(
                f"{one.name} tells what {one.content['scaffold']['name'] or 'a run'} forgot, whose scores are not "
                "among the results: name them, too"
            )


def _scaffold(content: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which scaffold or rival around which model; older results do not say."""
    return content["backbone"]["fingerprint"], content.get("scaffold", {}).get("fingerprint")


def _lengths(rows: Sequence[MethodScores], split: str) -> LengthScores | None:
    """Scores by length; None where all prompts are of one."""
    prompted = [row for row in rows if _has_length(kind_of(row.content))]
    values = {row.name: method_values(row.runs[0]) for row in prompted}
    lengths = sorted({own[LENGTH] for own in values.values()})
    if len(lengths) < 2:
        return None
    left_out = (LENGTH, *(RATES if split == DEV else ()))
    others = {name: {key: own[key] for key in own if key not in left_out} for name, own in values.items()}
    runs = [row.runs[0] for row in rows]
    columns = _distinguished({row.name: (_method_label(row.runs[0], runs), others[row.name]) for row in prompted})
    scores: dict[int, dict[str, MethodScores]] = {length: {} for length in lengths}
    for row in sorted(prompted, key=lambda row: row.average.value):  # the best comes last, and stays
        scores[values[row.name][LENGTH]][columns[row.name]] = row
    return LengthScores(list(dict.fromkeys(columns.values())), scores)


def _has_length(kind: str) -> bool:
    """Whether it is a scaffold with a prompt of some length."""
    return kind in KINDS and any(item.name == "length" for item in fields(KINDS[kind].Config))


def _method_label(result: Result, among: Sequence[Result]) -> str:
    """What a method is, with its encoder, and with its language model where there are several."""
    content = result.content
    kind = kind_of(content)
    name = LABELS.get(kind) or label_of(kind)
    if encoder := _encoder(content):
        name = f"{name} with {encoder}"
    if len({other.content["backbone"]["fingerprint"] for other in among}) > 1:
        name = f"{name}, {_short_name(content['backbone']['name'])}"
    return name


def _encoder(content: Mapping[str, Any]) -> str:
    """What reads the input of an input-dependent prompt, shortly."""
    if "scaffold" not in content:  # older results
        return _short_name(content["recipe"]["scaffold"].get("encoder", "")) if content["trained"] else ""
    encoder = content["scaffold"]["encoder"]
    if not encoder:
        return ""
    itself = encoder["fingerprint"] == content["backbone"]["fingerprint"]
    return "the LM as encoder" if itself else _short_name(encoder["name"])


def _short_name(name: str) -> str:
    """The last part of a model's name."""
    return name.rstrip("/").rsplit("/", maxsplit=1)[-1].removeprefix("package:")


def _distinguished(methods: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Names for what is called so and has these values: with the values that tell apart what is called alike."""
    found: dict[str, str] = {}
    for key, (called, own) in methods.items():
        alike = [values for other, values in methods.values() if other == called]
        names = dict.fromkeys(name for values in alike for name in values)
        apart = [name for name in names if any(values.get(name) != own.get(name) for values in alike)]
        last = [name.rpartition(".")[2] for name in apart]
        short = {name: one if last.count(one) == 1 else name for one, name in zip(last, apart, strict=True)}
        told = ", ".join(f"{short[name]}={_value(own[name])}" for name in apart if name in own)
        found[key] = f"{called} ({told})" if told else called
    return found


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
