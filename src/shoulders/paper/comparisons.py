"""What a frozen model is compared with: a sequence-to-sequence model as it is, and a fine-tuned extractive reader."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import Span
from shoulders.engine.batches import by_length
from shoulders.engine.inference import Answering, Found, check_asked, likeliest_choice
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import OnDone, Scores, evaluate_answers, scored
from shoulders.evaluation.results import provenance, scaffold_measured, scores_as_json
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Example, Passage, Question
from shoulders.retrieval.cross_encoder import reranker_named
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import OnScored, Pair, PairTokens, best_span, positions_at_once, whole_words
from shoulders.runs.build import new_evidence
from shoulders.runs.jobs import task_parts
from shoulders.runs.recipe import Recipe
from shoulders.runs.run import result, trained_parameters
from shoulders.scaffolds.base import Bare


@final
@dataclass(frozen=True, slots=True)
class EncoderDecoderAnswers:
    """A sequence-to-sequence model that answers; the encoder reads each question once, whatever its choices.

    Attributes:
        longest_input: tokens of a question at most; longer ones are cut, and `how` is told.
    """

    model: FrozenEncoderDecoder
    longest_input: int
    how: Answering

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """The greedy answer to each question."""
        longest = self.how.longest

        def read(sources: Sequence[list[int]], _: Sequence[int]) -> list[Answer]:
            some = self.model.likeliest(sources, longest=longest)
            return [Answer(self.model.text(one.ids).strip(), one.log_probability, one.margin) for one in some]

        return self._in_groups(questions, [longest] * len(questions), read)

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """The choice of the highest log-likelihood, summed over its tokens and the end, for each question."""
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
        read: Callable[[Sequence[list[int]], Sequence[int]], Sequence[Found]],
    ) -> list[Found]:
        """What `read` makes of questions of similar length together, given their numbers too; in their order."""
        rows = [self._source(question) for question in questions]
        found: dict[int, Found] = {}
        for group in by_length(range(len(rows)), lambda n: len(rows[n]) + extra[n], self.how.positions_at_once):
            found.update(zip(group, read([rows[number] for number in group], group), strict=True))
        return [found[number] for number in range(len(rows))]

    def _source(self, question: Question) -> list[int]:
        check_asked(question)
        ids, cut = self.model.source_ids(question.whole, self.longest_input)
        if cut:
            self.how.on_cut(question)
        return ids


def measure_encoder_decoder(recipe: Recipe, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Scores of the recipe's sequence-to-sequence model on its suite, and all that `results.json` holds of them.

    Inputs are cut at `suite.lengths.input` tokens (T0: 1,024).

    Raises:
        UsageError: the recipe is one of text, or puts evidence before questions.
        SourceNotFound, HubUnreachable: as `FrozenEncoderDecoder.load`.
    """
    backbone, suite = recipe.backbone, recipe.suite
    for key, value in {"text.source": recipe.text.source, "evidence.kind": recipe.evidence.kind}.items():
        if value:
            raise UsageError(
                f"{key}={value} is for causal models, and {backbone.name} has an encoder and a decoder: leave it empty"
            )
    tasks = task_parts(recipe).tested
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
    about = {"retrieval": None, "trained": 0, "scaffold": scaffold_measured(Bare(), None), "evidence": None}
    return scores, {**scores_as_json(scores), **about, **provenance(recipe.as_json(), model)}


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """An answer found in a passage.

    Attributes:
        text: of the answer; "" where no passage has a word.
        passage: number of the passage that it is from.
        characters: where it stands in the passage's text.
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
    """The answer to each question in its passages; "" where there is none."""
    return [found.text for found in best_spans(reranker, questions, passages, on_scored)]


def best_spans(
    reranker: Reranker,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    on_scored: OnScored = lambda _done, _all: None,
) -> list[ExtractedAnswer]:
    """For each question the best answer of at most 10 tokens in the most relevant passage that has a word.

    An answer that begins or ends inside a word has the whole word.

    Args:
        on_scored: is told how many passages have their relevance.

    Raises:
        UsageError: a question has no passage.
    """
    without = next((question for question, some in zip(questions, passages, strict=True) if not some), None)
    if without is not None:
        raise UsageError(f"there is no passage for {without!r}: an answer is found in one, so retrieve 1 at least")
    together = list(zip(questions, passages, strict=True))
    pairs = [Pair(question, one.title, one.text) for question, some in together for one in some]
    scores = iter(reranker.frozen().scores(pairs, on_scored))
    chosen = [_most_relevant(some, [next(scores) for _ in some]) for some in passages]
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
    """The best passage that is not empty; the best where all are."""
    return max(range(len(passages)), key=lambda at: (bool(passages[at].text.strip()), scores[at]))


def _spans(reranker: Reranker, rows: Sequence[PairTokens]) -> dict[int, Span]:
    """By number of the row, the characters of the best span of its passage; rows without a passage have none."""
    found: dict[int, Span] = {}
    told = [number for number, row in enumerate(rows) if row.offsets]
    budget = positions_at_once(reranker.tower.device)
    for numbers in by_length(told, lambda number: len(rows[number]), budget):
        tokens = reranker.rows.padded([rows[number] for number in numbers]).to(reranker.tower.device)
        with torch.inference_mode():
            logits = reranker.span(reranker.tower.states(tokens)).cpu()
        for number, some in zip(numbers, logits, strict=True):
            row = rows[number]
            start, end = some[row.passage : len(row)].unbind(1)
            first, last = best_span(start, end)
            found[number] = (row.offsets[first][0], row.offsets[last - 1][1])
    return found


QUESTIONS_AT_ONCE = 64  # questions, for progress
EXTRACTIVE = "extractive"


def measure_extractive(recipe: Recipe, lm: FrozenLM, name: str, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Scores of a re-ranker's own best spans by a recipe's `test`, and all that `results.json` holds of them.

    It reads all `evidence.passages` that are found for a question, as DPR's reader does, packed or not.

    Args:
        lm: of the recipe: says which passages a frozen reader would read of them.

    Raises:
        UsageError: the recipe retrieves no passages.
    """
    evidence = new_evidence(recipe, lm, recipe.scaffold.taken)
    if not isinstance(evidence, PackedEvidence):
        raise UsageError(
            f"{name} is a re-ranker, which finds answers in passages, and the recipe retrieves none: name one that "
            "does, --recipe reader evidence.index=FOLDER"
        )
    reranker = reranker_named(name)
    assert reranker is not None

    def answers(examples: Sequence[Example]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(examples), QUESTIONS_AT_ONCE):
            some = examples[start : start + QUESTIONS_AT_ONCE]
            found += _extracted(reranker, some, evidence.find([example.question for example in some]))
            on_done(len(found), len(examples))
        return found

    suite = recipe.suite
    tasks = task_parts(recipe).tested
    scores = scored(tasks, recipe.test, answers, without=suite.without(tasks), skip=suite.skip)
    about = {"kind": EXTRACTIVE, "name": name, "fingerprint": reranker.fingerprint(), "encoder": reranker.about.encoder}
    content = result(recipe, lm, Bare(recipe.scaffold.taken), scores, evidence=evidence)
    return scores, {**content, "trained": trained_parameters(reranker), "scaffold": about}


def _extracted(reranker: Reranker, examples: Sequence[Example], found: Sequence[Sequence[Passage]]) -> list[Answer]:
    """The best span of each question's passages; "" where there is no passage. How sure it is is not told."""
    asked = [number for number, passages in enumerate(found) if passages]
    queries = [examples[number].question.query for number in asked]
    texts = dict(zip(asked, extract(reranker, queries, [found[number] for number in asked]), strict=True))
    return [Answer(texts.get(number, ""), 0.0, 0.0) for number in range(len(examples))]
