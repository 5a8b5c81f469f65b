"""Cascades: stages around one frozen model, in order of cost; an input stops at the first confident answer.

On disk a cascade is its thresholds and the names of its scaffolds, which are not copied.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from shoulders.answering.calibration import Point
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UnknownName, UsageError, WrongBackbone
from shoulders.evidence.base import Evidence
from shoulders.records import Answer, Chat
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.store.files import atomic_folder, check_replaceable, read_json, recover_folder, write_json

RULES: dict[str, Callable[[Answer], float]] = {
    "probability": lambda answer: answer.log_probability,
    "margin": lambda answer: answer.margin,
}
PROBABILITY = "probability"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a cascade: a scaffold around the frozen model, and the cost of an answer.

    Attributes:
        scaffold: gives the greedy answer of the stage.
        passes: through the frozen model, including those for the evidence.
        name: folder or hub repository of the scaffold.
        evidence: source of evidence that questions are read with.
        chat: conversation that questions stand in.
    """

    scaffold: Scaffold
    passes: int
    name: str = ""
    evidence: Evidence | None = None
    chat: Chat | None = None

    @classmethod
    def of(
        cls, scaffold: Scaffold, name: str = "", evidence: Evidence | None = None, chat: Chat | None = None
    ) -> Self:
        """Return the stage of a scaffold with its evidence; its cost is that of both."""
        passes = scaffold.passes + (evidence.passes if evidence else 0)
        return cls(scaffold, passes, name or scaffold.kind, evidence, chat)


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """An answer, the number of its stage, and the passes of all stages that the input went through."""

    answer: Answer
    stage: int
    passes: int


@dataclass(frozen=True, slots=True)
class Cascade:
    """Stages in order of cost; an input stops at the first whose confidence reaches its threshold, or at the last.

    Attributes:
        stages: in order of cost.
        thresholds: minimum confidence of each stage except the last.
        rule: measure of confidence: "probability" (log-probability of the answer) or "margin" (its smallest lead).
    """

    stages: tuple[Stage, ...]
    thresholds: tuple[float, ...]
    rule: str = PROBABILITY

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if len(self.thresholds) != len(self.stages) - 1:
            raise UsageError(
                f"there are {len(self.stages)} stages and {len(self.thresholds)} thresholds: every stage but the last "
                "has one"
            )
        for one, other in pairwise(self.stages):
            if one.passes > other.passes:
                raise UsageError(
                    f"stage {one.name!r} costs {one.passes} passes and the one after it, {other.name!r}, "
                    f"{other.passes}: put the cheaper one first"
                )

    def only(self, passes: int) -> Self:
        """Return the most expensive stage of at most so many passes as a cascade of its own.

        Raises:
            UsageError: even the cheapest stage costs more.
        """
        found = [stage for stage in self.stages if stage.passes <= passes]
        if not found:
            costs = ", ".join(str(stage.passes) for stage in self.stages)
            raise UsageError(f"no stage answers with {passes} passes, they cost {costs}: ask for --passes auto or more")
        return replace(self, stages=(found[-1],), thresholds=())

    def answer_in_stages(self, count: int, ask: Callable[[Stage, Sequence[int]], list[Answer]]) -> list[StageAnswer]:
        """Return the answer to each of `count` questions, asked stage by stage until a stage is confident.

        Args:
            ask: answers the questions of the given numbers in a stage.
        """
        found: dict[int, StageAnswer] = {}
        left, spent = list(range(count)), 0
        for number, stage in enumerate(self.stages):
            spent += stage.passes
            for one, answer in zip(left, ask(stage, left) if left else [], strict=True):
                if number == len(self.thresholds) or RULES[self.rule](answer) >= self.thresholds[number]:
                    found[one] = StageAnswer(answer, number, spent)
            left = [one for one in left if one not in found]
        return [found[number] for number in range(count)]


def check_rule(rule: str) -> None:
    """Raise `UnknownName` for an unknown rule."""
    if rule not in RULES:
        raise UnknownName("rule", rule, RULES)


def check_count(stages: int) -> None:
    """Raise `UsageError` for fewer than 2 stages."""
    if stages < 2:
        raise UsageError(
            f"passes cannot vary over {stages} stage: name at least 2 runs, such as one of 1 pass and one of 2"
        )


ADAPTIVE = "adaptive.json"
FORMAT = 2
StageNamed = Callable[[str, FrozenLM], Stage]


@dataclass(frozen=True, slots=True)
class StoredStage:
    """The record of a stage. A name that begins with a dot is a path relative to the folder of the cascade."""

    name: str
    kind: str
    passes: int
    fingerprint: str
    evidence: str = ""  # its fingerprint


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of a cascade.

    Attributes:
        budget: maximum of the average passes.
        chosen: the thresholds, with their cost and score on the development set.
        curve: cost and score on the development set, cheapest first.
        recipe: of the measurement, also for `shoulders evaluate`.
        answering: how the cascade is asked (`shoulders.answering.spec.AnswerSpec`).
    """

    rule: str
    budget: float
    chosen: Point
    curve: Sequence[Point]
    recipe: Mapping[str, Any]
    answering: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredCascade:
    """A cascade as read from disk, without the weights of its scaffolds."""

    folder: Path
    backbone: str
    fingerprint: str
    stages: Sequence[StoredStage]
    calibration: Calibration

    def load(self, lm: FrozenLM, load_stage: StageNamed) -> Cascade:
        """Return the cascade around its backbone.

        Args:
            load_stage: loads the stage of a scaffold by name, with its evidence.

        Raises:
            WrongBackbone: `lm` is another model.
            SourceNotFound, UsageError: a stage is missing, or has changed since its threshold was chosen.
        """
        found = lm.fingerprint()
        if found != self.fingerprint:
            raise WrongBackbone(
                f"{self.folder} was calibrated around {self.backbone!r} (fingerprint {self.fingerprint[:12]}); "
                f"{lm.name!r} has other weights (fingerprint {found[:12]}): load the backbone it was calibrated around"
            )
        stages = tuple(self._stage(number, lm, load_stage) for number in range(len(self.stages)))
        return Cascade(stages, self.calibration.chosen.thresholds, self.calibration.rule)

    def _stage(self, number: int, lm: FrozenLM, load_stage: StageNamed) -> Stage:
        stored = self.stages[number]
        what = f"stage {number + 1} of {self.folder}"
        name = os.path.normpath(self.folder / stored.name) if stored.name.startswith(".") else stored.name
        try:
            stage = load_stage(name, lm)
        except SourceNotFound as error:
            raise SourceNotFound(f"{what}: {error}; put it back, or calibrate again (shoulders calibrate)") from error
        found = replace(_stored(stage, self.folder), name=stored.name)
        if found != stored:
            raise UsageError(
                f"{what}, {name}, is not what its threshold was chosen for ({_described(stored)}; now "
                f"{_described(found)}): "
                "calibrate again (shoulders calibrate)"
            )
        return stage


def save(
    folder: Path, adaptive: Cascade, lm: FrozenLM, calibration: Calibration, circumstances: Mapping[str, Any]
) -> None:
    """Write a cascade into a folder, whole or not at all.

    Args:
        circumstances: code, versions, machine and time of the calibration.

    Raises:
        SaveFailed: the folder cannot be written, or holds something else.
    """
    folder = folder.expanduser()
    check_cascade_folder(folder, [stage.name for stage in adaptive.stages])
    content = {
        "format": FORMAT,
        "backbone": {"name": lm.name, "fingerprint": lm.fingerprint()},
        "rule": calibration.rule,
        "budget": calibration.budget,
        "stages": [asdict(_stored(stage, folder)) for stage in adaptive.stages],
        "chosen": _as_json(calibration.chosen),
        "curve": [_as_json(point) for point in calibration.curve],
        "recipe": dict(calibration.recipe),
        "answering": dict(calibration.answering),
        **circumstances,
    }
    with atomic_folder(folder, ADAPTIVE) as scratch:
        write_json(scratch / ADAPTIVE, content)


def check_cascade_folder(folder: Path, stages: Sequence[str]) -> None:
    """Raise `SaveFailed` for a folder that cannot be replaced, or that contains a stage."""
    folder = folder.expanduser()
    check_replaceable(folder, ADAPTIVE)
    for name in stages:
        if Path(name).expanduser().resolve().is_relative_to(folder.resolve()):
            raise SaveFailed(f"{name} lies in {folder}, which is replaced as a whole: name a new folder (--out)")


def is_cascade(name: str | Path) -> bool:
    """Return whether a folder holds a cascade."""
    return (recover_folder(Path(name).expanduser()) / ADAPTIVE).exists()


def read(folder: Path) -> StoredCascade:
    """Return the cascade that `save` wrote into a folder.

    Raises:
        SourceNotFound, CorruptFile: the file is missing, broken or of another format.
    """
    folder = recover_folder(folder.expanduser())
    content = read_json(folder / ADAPTIVE)
    try:
        if content["format"] != FORMAT:
            way_out = "update shoulders" if content["format"] > FORMAT else "calibrate again (shoulders calibrate)"
            raise CorruptFile(f"{folder} has format {content['format']}, this version reads {FORMAT}: {way_out}")
        calibration = Calibration(
            content["rule"],
            content["budget"],
            _point(content["chosen"]),
            [_point(point) for point in content["curve"]],
            content["recipe"],
            content["answering"],
        )
        stages = [StoredStage(**stage) for stage in content["stages"]]
        return StoredCascade(
            folder, content["backbone"]["name"], content["backbone"]["fingerprint"], stages, calibration
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{folder / ADAPTIVE} does not describe a cascade: {error!r}; calibrate again") from error


def fingerprint(adaptive: Cascade) -> str:
    """Return a hash over the scaffolds, thresholds and rule of a cascade."""
    parts = [
        [identity(stage.scaffold), stage.passes, *([stage.evidence.fingerprint] if stage.evidence else [])]
        for stage in adaptive.stages
    ]
    return hashlib.sha256(json.dumps([parts, adaptive.thresholds, adaptive.rule]).encode()).hexdigest()


def _stored(stage: Stage, folder: Path) -> StoredStage:
    """Return the record of a stage; folders are relative to the cascade's, so that all may move together."""
    name, place = stage.name, Path(stage.name).expanduser()
    if stage.scaffold.kind != Bare.kind and place.is_dir():
        name = os.path.relpath(place.resolve(), folder.resolve())
    evidence = stage.evidence.fingerprint if stage.evidence else ""
    return StoredStage(name, stage.scaffold.kind, stage.passes, identity(stage.scaffold), evidence)


def _described(stored: StoredStage) -> str:
    evidence = f", evidence {stored.evidence[:12]}" if stored.evidence else ""
    return f"fingerprint {stored.fingerprint[:12]} with {stored.passes} passes{evidence}"


def _as_json(point: Point) -> dict[str, Any]:
    """Return a point as JSON values; infinity, which JSON lacks, becomes a string."""
    thresholds = [value if math.isfinite(value) else str(value) for value in point.thresholds]
    return {"thresholds": thresholds, "passes": point.passes, "score": point.score}


def _point(content: Mapping[str, Any]) -> Point:
    return Point(tuple(float(value) for value in content["thresholds"]), content["passes"], content["score"])
