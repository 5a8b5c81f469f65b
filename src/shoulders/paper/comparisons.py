"""Methods that frozen models are compared with: a bare sequence-to-sequence model, and an extractive reader."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import Span
from shoulders.engine.batches import Result, by_length, read_by_length
from shoulders.engine.inference import Answering, check_asked, likeliest_choice
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import OnDone, Scores, evaluate_answers, scored
from shoulders.evaluation.results import describe_scaffold, provenance, scores_as_json
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Example, Passage, Question
from shoulders.retrieval.cross_encoder import load_reranker
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import (
    OnScored,
    Pair,
    PairTokens,
    best_span,
    by_question,
    positions_at_once,
    whole_words,
)
from shoulders.runs.build import new_evidence
from shoulders.runs.jobs import split_tasks
from shoulders.runs.recipe import Recipe
from shoulders.runs.run import result, trained_parameters
from shoulders.scaffolds.base import Bare


@final
@dataclass(frozen=True, slots=True)
class EncoderDecoderAnswers:
    """A sequence-to-sequence model that answers; its encoder reads each question once, for all of its choices.

    Attributes:
        longest_input: largest number of tokens of a question; longer ones are cut, and reported to `how.on_cut`.
    """

    model: FrozenEncoderDecoder
    longest_input: int
    how: Answering

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the greedy answer to each question."""
        longest = self.how.longest

        def read(sources: Sequence[list[int]], _: Sequence[int]) -> list[Answer]:
            some = self.model.likeliest(sources, longest=longest)
            return [Answer(self.model.text(one.ids).strip(), one.log_probability, one.margin) for one in some]

        return self._in_groups(questions, [longest] * len(questions), read)

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """Return the choice with the highest log-likelihood, summed over its tokens and the end, for each question."""
        targets = [[self.model.target_ids(choice) for choice in some] for some in choices]

        def read(sources: Sequence[list[int]], numbers: Sequence[int]) -> list[list[float]]:
            some = [targets[number] for number in numbers]
            return self.model.score(sources, some, positions_at_once=self.how.positions_at_once)

        scores = self._in_groups(questions, [sum(map(len, some)) for some in targets], read)
        return [likeliest_choice(options, values) for options, values in zip(choices, scores, strict=True)]

    def _in_groups(
        self,
        questions: Sequence[Question],
        extra: Sequence[int],
        read: Callable[[Sequence[list[int]], Sequence[int]], Sequence[Result]],
    ) -> list[Result]:
        """Call `read` on batches of questions of similar length and their numbers; return the results in order."""
        rows = [self._source(question) for question in questions]
        lengths = [len(row) + more for row, more in zip(rows, extra, strict=True)]
        return read_by_length(
            lengths, self.how.positions_at_once, lambda numbers: read([rows[number] for number in numbers], numbers)
        )

    def _source(self, question: Question) -> list[int]:
        check_asked(question)
        ids, cut = self.model.source_ids(question.whole, self.longest_input)
        if cut:
            self.how.on_cut(question)
        return ids


def measure_encoder_decoder(recipe: Recipe, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Measure the recipe's sequence-to-sequence model on its suite; return scores and the content of `results.json`.

    Inputs are cut at `suite.lengths.input` tokens (T0: 1,024).

    Raises:
        UsageError: the recipe is for text, or reads evidence before questions.
        SourceNotFound, HubUnreachable: as `FrozenEncoderDecoder.load`.
    """
    backbone, suite = recipe.backbone, recipe.suite
    for key, value in {"text.source": recipe.text.source, "evidence.kind": recipe.evidence.kind}.items():
        if value:
            raise UsageError(
                f"{key}={value} is for causal models, and {backbone.name} has an encoder and a decoder: leave it empty"
            )
    tasks = split_tasks(recipe).tested
    model = FrozenEncoderDecoder.load(
        backbone.name, dtype=backbone.dtype, device=backbone.device, input_end=backbone.input_end
    )
    scores = evaluate_answers(
        tasks,
        lambda how: EncoderDecoderAnswers(model, suite.lengths.input, how),
        recipe.test,
        without=suite.without(tasks),
        skip=suite.skip,
        on_done=on_done,
    )
    about = {"retrieval": None, "demonstrations": None, "evidence": None, "trained": 0}
    about["scaffold"] = describe_scaffold(Bare(), None)
    return scores, {**scores_as_json(scores), **about, **provenance(recipe.as_json(), model)}


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """An answer found in a passage.

    Attributes:
        text: text of the answer; "" if no passage has a word.
        passage: number of the passage.
        characters: place of the answer in the text of the passage.
    """

    text: str
    passage: int
    characters: Span


def extract(
    reranker: Reranker,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    on_scored: OnScored = lambda _done, _all: None,
) -> list[str]:
    """Return the answer to each question in its passages; "" if there is none."""
    return [found.text for found in best_spans(reranker, questions, passages, on_scored)]


def best_spans(
    reranker: Reranker,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    on_scored: OnScored = lambda _done, _all: None,
) -> list[ExtractedAnswer]:
    """Return the best answer of at most 10 tokens to each question, in its most relevant passage that has a word.

    An answer that begins or ends inside a word is extended to the whole word.

    Args:
        on_scored: called with the number of passages scored so far, and of all passages.

    Raises:
        UsageError: a question has no passage.
    """
    without = next((question for question, some in zip(questions, passages, strict=True) if not some), None)
    if without is not None:
        raise UsageError(
            f"there is no passage for {without!r}: answers are taken from passages, so retrieve at least 1"
        )
    together = list(zip(questions, passages, strict=True))
    pairs = [Pair(question, one.title, one.text) for question, some in together for one in some]
    scores = by_question(reranker.frozen().scores(pairs, on_scored), passages)
    chosen = [_most_relevant(*one) for one in zip(passages, scores, strict=True)]
    best = [
        Pair(question, some[at].title, some[at].text) for (question, some), at in zip(together, chosen, strict=True)
    ]
    found = [ExtractedAnswer("", at, (0, 0)) for at in chosen]
    for number, (first, last) in _spans(reranker, reranker.rows(best)).items():
        text = best[number].text
        first, last = whole_words((first, last), text)
        found[number] = ExtractedAnswer(text[first:last], chosen[number], (first, last))
    return found


def _most_relevant(passages: Sequence[Passage], scores: Sequence[float]) -> int:
    """Return the number of the best passage that is not empty; of the best one if all are empty."""
    return max(range(len(passages)), key=lambda at: (bool(passages[at].text.strip()), scores[at]))


def _spans(reranker: Reranker, rows: Sequence[PairTokens]) -> dict[int, Span]:
    """Return the characters of the best span of each row's passage, by row number; rows without a passage have none."""
    found: dict[int, Span] = {}
    filled = [number for number, row in enumerate(rows) if row.offsets]
    budget = positions_at_once(reranker.tower.device)
    for numbers in by_length(filled, lambda number: len(rows[number]), budget):
        tokens = reranker.rows.padded([rows[number] for number in numbers]).to(reranker.tower.device)
        with torch.inference_mode():
            logits = reranker.span(reranker.tower.states(tokens)).cpu()
        for number, some in zip(numbers, logits, strict=True):
            row = rows[number]
            start, end = some[row.passage : len(row)].unbind(1)
            first, last = best_span(start, end)
            found[number] = (row.offsets[first][0], row.offsets[last - 1][1])
    return found


QUESTIONS_AT_ONCE = 64  # questions between two reports of progress
EXTRACTIVE = "extractive"


def measure_extractive(recipe: Recipe, lm: FrozenLM, name: str, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Measure a re-ranker's best spans by a recipe's `test`; return scores and the content of `results.json`.

    All `evidence.passages` found for a question are read, as DPR's reader does, whether or not they fit a context.

    Args:
        lm: the recipe's model, which decides which of the passages a frozen reader would read.

    Raises:
        UsageError: the recipe retrieves no passages.
    """
    evidence = new_evidence(recipe, lm, recipe.scaffold.taken)
    if not isinstance(evidence, PackedEvidence):
        raise UsageError(
            f"{name} is a re-ranker, which finds answers in passages, and the recipe retrieves none: name a recipe "
            "that does, --recipe reader evidence.index=FOLDER"
        )
    reranker = load_reranker(name)
    assert reranker is not None

    def answers(examples: Sequence[Example]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(examples), QUESTIONS_AT_ONCE):
            some = examples[start : start + QUESTIONS_AT_ONCE]
            found += _extracted(reranker, some, evidence.find([example.question for example in some]))
            on_done(len(found), len(examples))
        return found

    suite = recipe.suite
    tasks = split_tasks(recipe).tested
    scores = scored(tasks, recipe.test, answers, without=suite.without(tasks), skip=suite.skip)
    about = {"kind": EXTRACTIVE, "name": name, "fingerprint": reranker.fingerprint(), "encoder": reranker.about.encoder}
    content = result(recipe, lm, Bare(recipe.scaffold.taken), scores, evidence=evidence)
    return scores, {**content, "trained": trained_parameters(reranker), "scaffold": about}


def _extracted(reranker: Reranker, examples: Sequence[Example], found: Sequence[Sequence[Passage]]) -> list[Answer]:
    """Return the best span of each question's passages, without a probability; "" if there is no passage."""
    asked = [number for number, passages in enumerate(found) if passages]
    queries = [examples[number].question.query for number in asked]
    texts = dict(zip(asked, extract(reranker, queries, [found[number] for number in asked]), strict=True))
    return [Answer(texts.get(number, ""), 0.0, 0.0) for number in range(len(examples))]
