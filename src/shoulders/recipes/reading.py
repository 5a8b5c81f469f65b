"""Questions answered from the passages of an index, each answer with the passage that it stands in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Self, final

from shoulders.adaptive.abstaining import Threshold
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.evidence import Passage
from shoulders.data.packing import PackedEvidence
from shoulders.data.questions import QA, in_wording
from shoulders.data.support import Support, support
from shoulders.errors import CorruptFile, UsageError
from shoulders.files import read_json
from shoulders.pipeline import Answering, answered, choose
from shoulders.recipes.evidence import new_evidence
from shoulders.recipes.folders import BARE, scaffold_folder, scaffold_named
from shoulders.recipes.reader import reader
from shoulders.recipes.recipe import PASSAGES, RETRIEVED, EvidenceChoice, Recipe, recipe_from_json
from shoulders.records import Question
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.storage import read_origin

LONGEST = 64  # tokens of an answer
HOW = Answering(LONGEST)
THRESHOLD = "threshold.json"  # in a scaffold's folder
FORMAT = 1


@final
@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer with what it was read from.

    Attributes:
        text: what the model says, sure or not.
        confidence: the probability of all that it generated, 0 to 1; of a choice, its share among the choices.
        found: passages that the retriever found, best first, with their scores.
        read: those of them that the model read, in their order.
        support: which of these the answer stands in first, and where.
        least: confidence below which the answer counts as none; 0 where no threshold was chosen.
    """

    text: str
    confidence: float
    found: tuple[Passage, ...]
    read: tuple[Passage, ...]
    support: Support | None
    least: float = 0.0

    @property
    def answer(self) -> str | None:
        """The answer; None for "no answer": the model is not sure enough, or says nothing."""
        return self.text if self.text and self.confidence >= self.least else None

    @property
    def passage(self) -> Passage | None:
        """The first passage that was read and has the answer."""
        return self.read[self.support.number] if self.support else None

    @property
    def span(self) -> tuple[int, int] | None:
        """The characters of the answer in the text of its passage, from and up to."""
        return (self.support.start, self.support.end) if self.support else None

    @property
    def packed(self) -> int:
        """How many passages were read."""
        return len(self.read)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        said = "<i>no answer</i>" if self.answer is None else f"<b>{escape(self.answer)}</b>"
        if self.support is None or self.passage is None:
            return f"<p>{said} (not in the {self.packed} passages that were read)</p>"
        before, middle, after = parts(self.passage.text, (self.support.start, self.support.end))
        text = f"{escape(before)}<mark>{escape(middle)}</mark>{escape(after)}"
        return f"<p>{said} ({self.confidence:.2f})</p><p><b>{escape(self.passage.title)}</b> {text}</p>"


@final
@dataclass(frozen=True, slots=True)
class Reader:
    """A frozen model that answers from passages, with a scaffold or bare.

    >>> reader = Reader.load("runs/reader", index="runs/index")  # doctest: +SKIP
    >>> found = reader.ask("Who wrote The Hobbit?")
    >>> found.answer, found.confidence, found.passage, found.span

    Source: the paper, section 3.

    Attributes:
        evidence: where passages come from, and what packs them.
        how: answers are generated.
        worded: questions are asked as "Question: ... Answer:", as files of questions are.
        threshold: chosen by `shoulders threshold`; None gives every answer.
    """

    lm: FrozenLM
    scaffold: Scaffold
    evidence: PackedEvidence
    how: Answering = HOW
    worded: bool = True
    threshold: Threshold | None = None

    @classmethod
    def load(cls, name: str, index: str = "", lm: FrozenLM | None = None, how: Answering = HOW) -> Self:
        """The reader of a run, scaffold folder or hub name, or "bare", with the threshold that lies beside it.

        Args:
            index: folder of the passages; empty: that of the recipe. A scaffold that was trained without passages, and
                the bare model, read as the recipe `reader` does.
            lm: the frozen model, if it is loaded already; the bare model names none of its own.

        Raises:
            UsageError: it reads no passages and no index is named, or no model is.
            SourceNotFound, CorruptFile, WrongBackbone: as `Scaffold.load`, `new_evidence`.
        """
        name = scaffold_folder(name)
        recipe = {} if name == BARE else read_origin(name).recipe
        if not index and not reads_passages(recipe):
            raise UsageError(
                f"{name} was not trained to read passages, and no index is named: add one (--index FOLDER)"
            )
        if lm is None and name == BARE:
            raise UsageError(
                "the bare model names no backbone: load one, Reader.load('bare', index, FrozenLM.load(...))"
            )
        lm = lm or FrozenLM.load(read_origin(name).backbone)
        scaffold = scaffold_named(name, lm)
        read_with = over_index(recipe_from_json(recipe), index, how.longest)
        evidence = new_evidence(read_with, lm, scaffold.length)
        assert isinstance(evidence, PackedEvidence)
        worded = in_files(recipe) or not reads_passages(recipe)
        return cls(lm, scaffold, evidence, how, worded, read_threshold(name, scaffold))

    def ask(self, question: str | Question, choices: Sequence[str] = ()) -> ReadAnswer:
        """The answer to a question, or the most likely of some choices.

        Raises:
            UsageError, ContextFull: as `pipeline.answer`.
        """
        return self.ask_all([question], choices)[0]

    def ask_all(self, questions: Sequence[str | Question], choices: Sequence[str] = ()) -> list[ReadAnswer]:
        """As `ask`, several together."""
        asked = [self._worded(Question(one) if isinstance(one, str) else one) for one in questions]
        found = self.evidence.find(asked)
        packed = [self.evidence.packed(question, some) for question, some in zip(asked, found, strict=True)]
        whole = [one.question for one in packed]
        if choices:
            said = choose(whole, [choices] * len(whole), self.lm, self.scaffold, self.how)
        else:
            said = answered(whole, self.lm, self.scaffold, self.how)
        answers: list[ReadAnswer] = []
        for one, some, pack in zip(said, found, packed, strict=True):
            text = one.text.split("\n", 1)[0].rstrip()  # a bare model goes on with a question of its own
            stands = support(text, pack.passages)
            least = self.threshold.least(stands=stands is not None) if self.threshold and not choices else 0.0
            answers.append(ReadAnswer(text, math.exp(one.log_probability), tuple(some), pack.passages, stands, least))
        return answers

    def _worded(self, question: Question) -> Question:
        return replace(question, text=in_wording(question.text)) if self.worded and question.text else question


def over_index(recipe: Recipe, index: str, longest: int) -> Recipe:
    """The recipe with another index, or its own; one that reads no passages, as the recipe `reader` and its lengths.

    Passages are retrieved, also where they were annotated in training: what people ask is annotated nowhere.
    """
    if recipe.evidence.kind in PASSAGES:
        return replace(recipe, evidence=replace(recipe.evidence, kind=RETRIEVED, index=index or recipe.evidence.index))
    lengths = replace(reader().suite.lengths, target=longest)
    return replace(
        recipe,
        evidence=EvidenceChoice(kind=RETRIEVED, index=index),
        suite=replace(recipe.suite, lengths=lengths),
        development=replace(recipe.development, longest=longest),
        test=replace(recipe.test, longest=longest),
    )


def read_threshold(name: str, scaffold: Scaffold) -> Threshold | None:
    """The threshold that lies in a scaffold's folder; None if none was chosen.

    Raises:
        CorruptFile: it is broken, or of a newer format.
        UsageError: it was chosen for another scaffold.
    """
    path = Path(name).expanduser() / THRESHOLD
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if content["format"] > FORMAT:
            raise CorruptFile(f"{path} has format {content['format']}, this version reads up to {FORMAT}: update")
        threshold = Threshold.from_json(content["threshold"])
        chosen_for = content["scaffold"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} holds no threshold: {error!r}; choose it again (shoulders threshold)") from error
    if chosen_for != identity(scaffold):
        raise UsageError(f"{path} was chosen for another scaffold: choose it again (shoulders threshold), or delete it")
    return threshold


def reads_passages(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe, as it is kept with a scaffold, has passages to read."""
    return (recipe.get("evidence") or {}).get("kind") in PASSAGES


def in_files(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe, as it is kept with a scaffold, is for files of questions, which have a wording."""
    return (recipe.get("suite") or {}).get("source", "").startswith(QA)


def parts(text: str, span: tuple[int, int]) -> tuple[str, str, str]:
    """A text before, in and after a span."""
    return text[: span[0]], text[span[0] : span[1]], text[span[1] :]
