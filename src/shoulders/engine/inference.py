"""The main path: questions in, answers out, through one scaffold around the frozen model.

`answer` generates, `sample` draws several answers, `stream` yields one in pieces, `rank` and `choose` score given
choices. Each turns questions into token ids, groups them by length, and decodes. Everything that asks a model
(answering, evaluation, the command line, a server) calls these functions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.choosing import Generated, check_sampling
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine import decode
from shoulders.engine.batches import (
    EncodedQuestion,
    Result,
    answer_ids,
    encode,
    question_batch,
    read_by_length,
    tokenised,
    truncated,
)
from shoulders.engine.decode import Scored
from shoulders.errors import ContextFull, UsageError
from shoulders.records import Answer, Question, QuestionLike, ScaffoldInput, as_question, as_questions
from shoulders.scaffolds.base import Scaffold

LONGEST_ANSWER = 256  # in tokens (Sanh et al. 2021; the paper, section 2.2)
POSITIONS_AT_ONCE = 4096  # positions of one batch, padding and prompt included


class Engine(Protocol):
    """The interface of what runs passes: `engine.decode`, or a scheduler that many threads share."""

    def likeliest(
        self, lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, stops: Sequence[str] = ()
    ) -> list[Generated]:
        """Return the greedy continuation of each row, with its probability."""
        ...

    def sampled(
        self,
        lm: FrozenLM,
        scaffold: Scaffold,
        given: ScaffoldInput,
        draws: Float[Tensor, "B N L"],
        *,
        temperature: float = 1.0,
        stops: Sequence[str] = (),
    ) -> list[list[Generated]]:
        """Return N continuations of each row of at most L tokens, from one pass over it."""
        ...

    def score(
        self,
        lm: FrozenLM,
        scaffold: Scaffold,
        given: ScaffoldInput,
        continuations: Sequence[Sequence[list[int]]],
        *,
        positions_at_once: int = 1 << 30,
    ) -> list[list[Scored]]:
        """Return the log-likelihood of each row's continuations, from one pass over the row."""
        ...

    def stream(
        self, lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, stops: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yield the text generated after a single row in pieces, each of whole characters."""
        ...


@dataclass(frozen=True, slots=True)
class Answering:
    """Settings for reading and answering questions.

    Attributes:
        longest: largest number of tokens of an answer.
        truncate: cut questions that do not fit the context, instead of raising `ContextFull`.
        positions_at_once: largest size of a batch, in positions.
        on_cut: called with each question that was cut.
        stops: texts that end an answer, and are no part of it.
        engine: runs the passes; by default in the thread that asks.
    """

    longest: int = LONGEST_ANSWER
    truncate: bool = False
    positions_at_once: int = POSITIONS_AT_ONCE
    on_cut: Callable[[Question], None] = lambda _: None
    stops: tuple[str, ...] = ()
    engine: Engine = decode

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise UsageError(
                f"length of the answer must be at least 1, got {self.longest}: raise --longest (test.longest)"
            )


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings for sampling several answers to a question.

    Attributes:
        count: number of answers to each question.
        temperature: 1 samples the model's own distribution.
        seed: seed of the draws. The draws of a question depend on its text and the seed alone, and the first answers
            are the same for any count.
    """

    count: int = 16
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(
                f"number of sampled answers must be at least 1, got {self.count}: raise it (evidence.count, --samples)"
            )
        check_sampling(self.temperature)

    def draws(self, question: Question, longest: int) -> Float[Tensor, "N L"]:
        """Return the numbers that decide the sampled answers to a question, uniform on [0, 1)."""
        digest = blake2b(f"{self.seed}/{question.whole}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.rand(self.count, longest, generator=generator, dtype=torch.float64)


def answer(
    questions: Sequence[QuestionLike], lm: FrozenLM, scaffold: Scaffold, how: Answering | None = None
) -> list[str]:
    """Return the greedy answer to each question.

    Raises:
        UsageError: a question is empty.
        ContextFull: a question, the prompt and room for the answer do not fit the context.
    """
    return [one.text for one in answered(questions, lm, scaffold, how)]


def answered(
    questions: Sequence[QuestionLike], lm: FrozenLM, scaffold: Scaffold, how: Answering | None = None
) -> list[Answer]:
    """Return the greedy answer to each question with its probability.

    Raises:
        UsageError, ContextFull: see `answer`.
    """
    how = how or Answering()
    rows = [_fitting(one, lm, scaffold, how.longest, how) for one in as_questions(questions)]

    def read(given: ScaffoldInput, _: Sequence[int]) -> list[Answer]:
        some = how.engine.likeliest(lm, scaffold, given, longest=how.longest, stops=how.stops)
        return [as_answer(one, lm, how) for one in some]

    return in_groups(rows, lm, scaffold, how, [how.longest] * len(rows), read)


def sample(
    questions: Sequence[QuestionLike],
    lm: FrozenLM,
    scaffold: Scaffold,
    sampling: Sampling,
    how: Answering | None = None,
) -> list[list[Answer]]:
    """Return several answers to each question, sampled after one pass over the question.

    Raises:
        UsageError, ContextFull: see `answer`.
    """
    how = how or Answering()
    rows = [_fitting(one, lm, scaffold, how.longest, how) for one in as_questions(questions)]
    branches = [sampling.count * (len(row.ids) + scaffold.length + how.longest) for row in rows]

    def read(given: ScaffoldInput, numbers: Sequence[int]) -> list[list[Answer]]:
        draws = torch.stack([sampling.draws(rows[number].question, how.longest) for number in numbers])
        several = how.engine.sampled(lm, scaffold, given, draws, temperature=sampling.temperature, stops=how.stops)
        return [[as_answer(one, lm, how) for one in some] for some in several]

    return in_groups(rows, lm, scaffold, how, branches, read)


def stream(question: QuestionLike, lm: FrozenLM, scaffold: Scaffold, how: Answering | None = None) -> Iterator[str]:
    """Yield the greedy answer to a question in pieces, as they are generated.

    Raises:
        UsageError, ContextFull: see `answer`.
    """
    how = how or Answering()
    given = question_batch([_fitting(as_question(question), lm, scaffold, how.longest, how)], lm, scaffold)
    whole = shown = ""
    for piece in how.engine.stream(lm, scaffold, given, longest=how.longest, stops=how.stops):
        whole += piece
        text = before_stop(whole, how.stops)
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text


def as_answer(one: Generated, lm: FrozenLM, how: Answering) -> Answer:
    """Return what was generated as an answer, without its stop text."""
    return Answer(before_stop(lm.text(one.ids), how.stops).strip(), one.log_probability, one.margin)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text in it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def rank(
    questions: Sequence[QuestionLike],
    choices: Sequence[Sequence[str]],
    lm: FrozenLM,
    scaffold: Scaffold,
    how: Answering | None = None,
) -> list[list[float]]:
    """Return the log-likelihood of each choice given its question, summed over its tokens and the end token.

    This is rank classification. The choices of one question share one pass over it. Source: Sanh et al. 2021, section 5
    (not length-normalised).

    Raises:
        UsageError: a question is empty, or has no choices.
        ContextFull: a question, the prompt and the longest choice do not fit the context.
    """
    how = how or Answering()
    known = [tokenised(one, lm) for one in as_questions(questions)]
    if len(choices) != len(known):
        raise UsageError(f"there are {len(known)} questions and choices of {len(choices)}: give a list for each")
    for question, some in zip(known, choices, strict=True):
        if isinstance(some, str):
            raise UsageError(f"the choices of a question are one string ({some!r:.80}): give a list of choices")
        if not some:
            raise UsageError(f"the question {question.text!r} has no choices to rank: give at least one")
    options = [
        [answer_ids(question, choice, lm) for choice in some] for question, some in zip(known, choices, strict=True)
    ]
    longest = [max(len(ids) for ids in some) for some in options]
    rows = [_fitting(question, lm, scaffold, room, how) for question, room in zip(known, longest, strict=True)]
    branches = [len(some) * length for some, length in zip(options, longest, strict=True)]

    def read(given: ScaffoldInput, numbers: Sequence[int]) -> list[list[float]]:
        some = [options[number] for number in numbers]
        scored = how.engine.score(lm, scaffold, given, some, positions_at_once=how.positions_at_once)
        return [[one.log_likelihood for one in values] for values in scored]

    return in_groups(rows, lm, scaffold, how, branches, read)


def choose(
    questions: Sequence[QuestionLike],
    choices: Sequence[Sequence[str]],
    lm: FrozenLM,
    scaffold: Scaffold,
    how: Answering | None = None,
) -> list[Answer]:
    """Return the likeliest of the choices by `rank`, with its probability among the choices.

    Raises:
        UsageError, ContextFull: see `rank`.
    """
    scores = rank(questions, choices, lm, scaffold, how)
    return [likeliest_choice(options, values) for options, values in zip(choices, scores, strict=True)]


def likeliest_choice(choices: Sequence[str], scores: Sequence[float]) -> Answer:
    """Return the choice of the highest log-likelihood as an answer, with its probability among the choices."""
    best = scores.index(max(scores))
    others = [score for number, score in enumerate(scores) if number != best]
    margin = scores[best] - max(others, default=-float("inf"))
    return Answer(choices[best], float(torch.tensor(scores, dtype=torch.float64).log_softmax(0)[best]), margin)


def in_groups(
    rows: Sequence[EncodedQuestion],
    lm: FrozenLM,
    scaffold: Scaffold,
    how: Answering,
    extra: Sequence[int],
    read: Callable[[ScaffoldInput, Sequence[int]], Sequence[Result]],
) -> list[Result]:
    """Run `read` on batches of rows of similar length; return its results in the order of the rows.

    Args:
        rows: questions as token ids.
        lm: the frozen model.
        scaffold: the scaffold around it.
        how: has the size of a batch.
        extra: number of positions of each row beside its text and prompt.
        read: returns a result for each row of a batch; it also gets the numbers of these rows.
    """

    def batch(numbers: Sequence[int]) -> Sequence[Result]:
        return read(question_batch([rows[number] for number in numbers], lm, scaffold), numbers)

    lengths = [scaffold.length + len(row.ids) + more for row, more in zip(rows, extra, strict=True)]
    return read_by_length(lengths, how.positions_at_once, batch)


def check_asked(question: Question) -> None:
    """Raise `UsageError` for a question without a text."""
    if not question.whole.strip():
        raise UsageError("a question is empty: there is nothing to answer")


def _fitting(question: Question, lm: FrozenLM, scaffold: Scaffold, answer_room: int, how: Answering) -> EncodedQuestion:
    """Return a question as token ids, cut if it does not fit the context and that is allowed."""
    check_asked(question)
    row = encode(question, lm)
    room = lm.context - scaffold.length - answer_room
    if len(row.ids) <= room:
        return row
    if how.truncate and room > row.rest:
        how.on_cut(question)
        return truncated(row, room)
    shorter = "ask for a shorter answer (--longest, test.longest; with choices: shorter choices)"
    raise ContextFull(
        f"a question of {len(row.ids)} tokens with a prompt of {scaffold.length} and {answer_room} for the answer",
        wanted=len(row.ids) + scaffold.length + answer_room,
        room=lm.context,
        way_out=shorter if how.truncate else f"shorten it, allow truncation, or {shorter}",
    )
