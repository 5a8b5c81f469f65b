"""Textual recursion: answers that the frozen model sampled itself, kept in a file, as evidence for a second pass."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol, final

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.inference import Answering, Sampling, sample
from shoulders.errors import UsageError
from shoulders.records import Answer, Passage, Question
from shoulders.scaffolds.base import Scaffold
from shoulders.store.cache import ValueCache, key_of_texts

HEADING, ANSWER = "Candidates:", "Answer:"


class Sampler(Protocol):
    """What answers are sampled from."""

    @property
    def passes(self) -> int:
        """Passes through the frozen model that one reading of a question takes."""
        ...

    @property
    def name(self) -> str:
        """All that the answers to a question depend on."""
        ...

    def samples(self, questions: Sequence[Question], count: int) -> list[list[Answer]]:
        """So many answers to each question, in the order in which they were drawn."""
        ...


@final
@dataclass(frozen=True, slots=True)
class FirstPass:
    """The frozen model under the prompt p1 of textual recursion. Source: the paper, section 4.1.

    Attributes:
        sampling: temperature and seed; its count is not used.
        store: where answers are kept; what is there already is not drawn again.
        name: that the answers are kept under: they depend on backbone and prompt.
    """

    lm: FrozenLM
    scaffold: Scaffold
    sampling: Sampling
    how: Answering
    store: ValueCache
    name: str

    @property
    def passes(self) -> int:
        """Those of the scaffold."""
        return self.scaffold.passes

    def samples(self, questions: Sequence[Question], count: int) -> list[list[Answer]]:
        """Answers, drawn after one reading of each question."""
        keys = [key_of_texts("samples", self.name, question.whole) for question in questions]
        known = {key: [Answer(*values) for values in kept] for key, kept in self.store.get(keys).items()}
        missing = {key: one for key, one in zip(keys, questions, strict=True) if len(known.get(key, ())) < count}
        drawn = sample([*missing.values()], self.lm, self.scaffold, replace(self.sampling, count=count), self.how)
        fresh = dict(zip(missing, drawn, strict=True))
        self.store.put({key: [(one.text, one.log_probability, one.margin) for one in fresh[key]] for key in fresh})
        known |= fresh
        return [known[key][:count] for key in keys]


@final
@dataclass(frozen=True, slots=True)
class Candidates:
    """An evidence source: sampled answers, each once, ordered by the model's own probability.

    Attributes:
        sampler: p1.
        count: answers drawn for a question, before those that say the same are put together.
        across: for cross-fitting, the sampler of each fold that was trained on the other one.
        before: write the list before the question instead of after it, where the paper has it.
    """

    sampler: Sampler
    count: int
    across: Mapping[str, Sampler]
    before: bool = False

    @property
    def passes(self) -> int:
        """Those of the sampler: all candidates of a question share its reading."""
        return self.sampler.passes

    @property
    def fingerprint(self) -> str:
        """Of samplers, count and place."""
        names = [self.sampler.name, *(self.across[fold].name for fold in sorted(self.across))]
        return blake2b(f"{names}/{self.count}/{self.before}".encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Candidates of each question.

        Raises:
            UsageError: no question has one: all samples are empty.
        """
        sampler = self.across.get(fold, self.sampler)
        found = [merged(some) for some in sampler.samples(questions, self.count)]
        if questions and not any(found):
            raise UsageError(
                f"all {self.count} candidates of {len(questions)} questions are empty: train the first prompt longer, "
                "lower evidence.temperature, or raise evidence.longest"
            )
        return found

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The question followed by the list (the paper, section 4.1), or the other way round."""
        if not passages:
            return question
        listed = f"{HEADING} {'; '.join(passage.text for passage in passages)}\n"
        if self.before:
            return replace(question, evidence=f"{listed}{question.evidence}")
        return replace(question, text=f"{question.text.removesuffix(ANSWER).rstrip()}\n{listed}{ANSWER}")


def merged(samples: Sequence[Answer]) -> list[Passage]:
    """Samples that differ in letter case or spaces only put together, the most probable first; empty ones left out.

    What was drawn twice counts once. Spellings of one answer add up their probabilities, and the likeliest stands for
    them.
    """
    spellings: dict[str, dict[str, float]] = {}
    for one in samples:
        if one.text:
            some = spellings.setdefault(" ".join(one.text.casefold().split()), {})
            some[one.text] = max(one.log_probability, some.get(one.text, -math.inf))
    found = [Passage(max(some, key=lambda text: some[text]), _log_sum(some.values())) for some in spellings.values()]
    return sorted(found, key=lambda passage: passage.score, reverse=True)


def _log_sum(logs: Collection[float]) -> float:
    highest = max(logs)
    return highest + math.log(sum(math.exp(value - highest) for value in logs))
