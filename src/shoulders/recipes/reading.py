"""Questions answered from the passages of an index, each answer with the passage that it stands in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Self, final

from shoulders.adaptive.abstaining import Threshold
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.packing import PackedEvidence
from shoulders.data.questions import QA, in_wording
from shoulders.data.support import support
from shoulders.errors import UsageError
from shoulders.pipeline import Answering, answered, choose
from shoulders.recipes.evidence import evidence_measured, new_evidence
from shoulders.recipes.named import Named
from shoulders.recipes.reader import reader
from shoulders.recipes.recipe import PASSAGES, RETRIEVED, EvidenceChoice, Recipe, recipe_from_json
from shoulders.recipes.rivals import Adapted
from shoulders.recipes.thresholds import read_threshold
from shoulders.records import Passage, Question, Support
from shoulders.scaffolds.base import Scaffold

LONGEST = 64  # tokens of an answer, where no recipe of passages says how many


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
    """A model that answers from passages: the frozen one, bare or under a scaffold, or a rival of one.

    >>> reader = Reader.load("runs/reader", index="runs/index")  # doctest: +SKIP
    >>> found = reader.ask("Who wrote The Hobbit?")
    >>> found.answer, found.confidence, found.passage, found.span

    Source: the paper, section 3.

    Attributes:
        evidence: where passages come from, and what packs them.
        how: answers are generated.
        worded: questions are asked as "Question: ... Answer:", as files of questions are.
        threshold: chosen by `shoulders threshold`; None gives every answer.
        doubt: why the threshold may not fit what is read; empty where it was chosen over the same passages.
    """

    lm: FrozenLM
    scaffold: Scaffold
    evidence: PackedEvidence
    how: Answering
    worded: bool = True
    threshold: Threshold | None = None
    doubt: str = ""

    @classmethod
    def load(
        cls,
        name: str,
        index: str = "",
        lm: FrozenLM | None = None,
        longest: int | None = None,
        *,
        truncate: bool = False,
    ) -> Self:
        """The reader of a run, of a scaffold's or rival's folder, a hub name, or "bare"; with its threshold, if any.

        Args:
            index: folder of the passages; empty: that of the recipe. A scaffold that was trained without passages, and
                the bare model, read as the recipe `reader` does.
            lm: the frozen model, if it is loaded already; the bare model names none of its own.
            longest: tokens of an answer at most, which the passages leave room for; None: as many as it is measured
                with (`test.longest`), or 64 where it was trained without passages.
            truncate: cut questions that do not fit the context.

        Raises:
            UsageError: it reads no passages and no index is named, or no model is; it is nothing that answers.
            SourceNotFound, CorruptFile, WrongBackbone: as `Scaffold.load`, `new_evidence`.
        """
        named = Named.of(name)
        recipe = over_index(named, recipe_from_json(named.recipe), index, longest)
        if lm is None:
            if named.origin is None:
                raise UsageError(
                    "the bare model names no backbone: load one, Reader.load('bare', index, FrozenLM.load(...))"
                )
            lm = FrozenLM.load(named.origin.backbone)
        reader = cls.of(named, recipe, lm, truncate=truncate)
        kept = read_threshold(named.name, Adapted(reader.lm, reader.scaffold))
        if kept is None:
            return reader
        read = evidence_measured(recipe, lm, reader.evidence) or {}
        return replace(reader, threshold=kept.threshold, doubt=kept.doubt(read))

    @classmethod
    def of(cls, named: Named, recipe: Recipe, lm: FrozenLM, *, truncate: bool = False) -> Self:
        """As `load`, with the passages of another recipe, and without a threshold.

        Args:
            recipe: as `over_index` gives it.
        """
        found = named.around(lm)
        evidence = new_evidence(recipe, lm, found.scaffold.length)
        assert isinstance(evidence, PackedEvidence)
        worded = in_files(named.recipe) or not reads_passages(named.recipe)
        return cls(found.lm, found.scaffold, evidence, Answering(recipe.test.longest, truncate), worded)

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


def over_index(named: Named, recipe: Recipe, index: str = "", longest: int | None = None) -> Recipe:
    """The recipe over another index, or its own; one that reads no passages, as the recipe `reader` and its lengths.

    Passages are retrieved, also where they were annotated in training: what people ask is annotated nowhere. Answers
    are as long as its `test` has them, so that what is packed leaves room for them.

    Args:
        longest: tokens of an answer; None as `Reader.load` says.

    Raises:
        UsageError: it reads no passages, and no index is named.
    """
    if recipe.evidence.kind in PASSAGES:
        return replace(
            recipe,
            evidence=replace(recipe.evidence, kind=RETRIEVED, index=index or recipe.evidence.index),
            test=replace(recipe.test, longest=recipe.test.longest if longest is None else longest),
        )
    if not index:
        raise UsageError(
            f"{named.name} was not trained to read passages, and no index is named: add one (--index FOLDER)"
        )
    longest = LONGEST if longest is None else longest
    return replace(
        recipe,
        evidence=EvidenceChoice(kind=RETRIEVED, index=index),
        suite=replace(recipe.suite, lengths=replace(reader().suite.lengths, target=longest)),
        development=replace(recipe.development, longest=longest),
        test=replace(recipe.test, longest=longest),
    )


def reads_passages(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe, as it is kept with a scaffold, has passages to read."""
    return (recipe.get("evidence") or {}).get("kind") in PASSAGES


def in_files(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe, as it is kept with a scaffold, is for files of questions, which have a wording."""
    return (recipe.get("suite") or {}).get("source", "").startswith(QA)


def parts(text: str, span: tuple[int, int]) -> tuple[str, str, str]:
    """A text before, in and after a span."""
    return text[: span[0]], text[span[0] : span[1]], text[span[1] :]
