"""Textual recursion: answers that the frozen model sampled itself, as evidence for a second pass."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol, Self, final

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.inference import Answering, Engine, Sampling, sample
from shoulders.errors import UsageError
from shoulders.records import Answer, Passage, Question
from shoulders.scaffolds.base import Scaffold
from shoulders.store.cache import ValueCache, key_of_texts

HEADING, ANSWER = "Candidates:", "Answer:"
TELLING = 4  # questions; that fewer have no candidate may be chance


class Sampler(Protocol):
    """Interface of a model that answers are sampled from."""

    @property
    def passes(self) -> int:
        """Passes through the frozen model for each question, however many answers are sampled."""
        ...

    @property
    def name(self) -> str:
        """Text that names everything that the answers to a question depend on."""
        ...

    def samples(self, questions: Sequence[Question], count: int) -> list[list[Answer]]:
        """Return `count` sampled answers to each question, in the order in which they were sampled."""
        ...

    def over(self, engine: Engine) -> "Sampler":
        """Return the same sampler, whose passes an engine runs."""
        ...


@final
@dataclass(frozen=True, slots=True)
class FirstPass:
    """The frozen model under the prompt p1 of textual recursion. Source: the paper, section 4.1.

    Attributes:
        sampling: temperature and seed; its count is not used.
        how: length of an answer, and memory.
        store: cache of the answers; those in it are not sampled again.
        name: part of the cache key: everything that the answers depend on beside the question.
        put: returns a question as the scaffold was trained to read it, in a conversation or as plain text.
    """

    lm: FrozenLM
    scaffold: Scaffold
    sampling: Sampling
    how: Answering
    store: ValueCache
    name: str
    put: Callable[[Question], Question] = lambda question: question

    @property
    def passes(self) -> int:
        """Passes of the scaffold."""
        return self.scaffold.passes

    def over(self, engine: Engine) -> Self:
        """Return the same sampler, whose passes an engine runs."""
        return replace(self, how=replace(self.how, engine=engine))

    def samples(self, questions: Sequence[Question], count: int) -> list[list[Answer]]:
        """Return sampled answers from the cache, or sample them, reading each question once."""
        questions = [self.put(question) for question in questions]
        keys = [key_of_texts("samples", self.name, question.whole, *_said(question)) for question in questions]
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
    """An evidence source: distinct sampled answers, ordered by the model's own probability.

    Attributes:
        sampler: the first pass, under the prompt p1.
        count: number of answers sampled for a question, before equal ones are merged.
        across: for cross-fitting, the sampler to use for each fold, trained on the other fold.
        before: write the list before the question instead of after it (as in the paper).
        probabilities: write the model's own probability behind each candidate. Not in the paper.
    """

    sampler: Sampler
    count: int
    across: Mapping[str, Sampler]
    before: bool = False
    probabilities: bool = False

    @property
    def passes(self) -> int:
        """Passes of the sampler: all candidates of a question share one reading of it."""
        return self.sampler.passes

    @property
    def fingerprint(self) -> str:
        """Hash over samplers, count, position and form of the list."""
        names = [self.sampler.name, *(self.across[fold].name for fold in sorted(self.across))]
        form = f"{self.before}{'/probabilities' * self.probabilities}"
        return blake2b(f"{names}/{self.count}/{form}".encode(), digest_size=16).hexdigest()

    def over(self, engine: Engine) -> Self:
        """Return the same source, whose passes an engine runs."""
        across = {fold: sampler.over(engine) for fold, sampler in self.across.items()}
        return replace(self, sampler=self.sampler.over(engine), across=across)

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the candidates of each question, the most probable first.

        Raises:
            UsageError: all samples of all questions are empty.
        """
        sampler = self.across.get(fold, self.sampler)
        candidates = [merge_samples(some) for some in sampler.samples(questions, self.count)]
        if len(questions) >= TELLING and not any(candidates):
            raise UsageError(
                f"all {self.count} candidates of {len(questions)} questions are empty: train the first prompt longer, "
                "lower evidence.temperature, or raise evidence.longest"
            )
        return candidates

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question followed by the list (the paper, section 4.1), or the list before the question."""
        if not passages:
            return question
        listed = f"{HEADING} {'; '.join(map(self._shown, passages))}\n"
        if self.before:
            return replace(question, evidence=f"{listed}{question.evidence}")
        return replace(question, text=f"{question.text.removesuffix(ANSWER).rstrip()}\n{listed}{ANSWER}")

    def _shown(self, passage: Passage) -> str:
        return f"{passage.text} ({math.exp(passage.score):.2f})" if self.probabilities else passage.text


def _said(question: Question) -> list[str]:
    """Return roles and texts of the conversation that a question stands in."""
    if question.chat is None:
        return []
    return ["chat", *(text for one in question.chat.before for text in (one.role, one.content))]


def merge_samples(samples: Sequence[Answer]) -> list[Passage]:
    """Return the distinct answers among samples, the most probable first, without empty ones.

    Samples that differ in letter case or spaces only are one answer: its probability is the sum over its spellings, its
    text the most probable spelling. A spelling that was sampled twice counts once.
    """
    spellings: dict[str, dict[str, float]] = {}
    for one in samples:
        if one.text:
            some = spellings.setdefault(_words(one.text), {})
            some[one.text] = max(one.log_probability, some.get(one.text, -math.inf))
    found = [Passage(max(some, key=lambda text: some[text]), _log_sum(some.values())) for some in spellings.values()]
    return sorted(found, key=lambda passage: passage.score, reverse=True)


def majority(samples: Sequence[Answer]) -> Answer:
    """Return the answer that was sampled most often, in its most probable spelling; of several the most probable.

    This is self-consistency (Wang et al. 2023), which needs no second pass. Its probability is that of `merge_samples`.
    """
    counts = Counter(_words(one.text) for one in samples)
    merged = merge_samples(samples)
    if not merged:
        return samples[0]
    best = max(merged, key=lambda passage: (counts[_words(passage.text)], passage.score))
    return Answer(best.text, best.score, 0.0)


def _words(text: str) -> str:
    """Return what is the same for all spellings that count as one answer."""
    return " ".join(text.casefold().split())


def _log_sum(logs: Collection[float]) -> float:
    highest = max(logs)
    return highest + math.log(sum(math.exp(value - highest) for value in logs))
