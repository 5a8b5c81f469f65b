"""The frozen language model as a re-ranker, and as the teacher of one: likelihoods after a passage, without labels."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import EncodedQuestion, by_length, encode, training_batch
from shoulders.errors import ContextFull, UnknownName, UsageError
from shoulders.records import IGNORE, Batch, Question
from shoulders.retrieval.scoring import OnScored, Pair, SeenQuestions, positions_at_once
from shoulders.scaffolds.base import Bare, Scaffold

QUESTION, YES, ANSWER = "question", "yes", "answer"
LIKELIHOODS = (QUESTION, YES)  # those that need no answer, and can order passages
NAMED = "lm:"  # beginning of a re-ranker's name that is the frozen model itself: lm:question, lm:yes
ASKED = {
    QUESTION: "Please write a question based on this passage.\nQuestion:",  # UPR's instruction (Sachan et al. 2022)
    YES: "Question: {question}\nDoes the passage answer the question? Answer yes or no.\nAnswer:",
    ANSWER: "Question: {question}\nAnswer:",
}


@final
class LanguageModelRanker:
    """The frozen model as a ranker of passages, by what it expects after one.

    It has seen none of the questions in training, and has no weights of its own.

    Args:
        lm: the frozen model.
        likelihood: "question": the mean log-probability of the question's tokens after the passage and a request to
            ask about it (query likelihood; Sachan et al. 2022); "yes": the log of the odds of "yes" against "no", asked
            whether the passage answers the question (Liang et al. 2022); "answer": the log-probability of the known
            answer (`Pair.answer`) after passage and question, for a teacher.
        scaffold: that the model reads under; `Bare()` for none.

    Raises:
        UnknownName: there is no such likelihood.
        UsageError: its tokenizer does not tell "yes" and "no" apart.
    """

    def __init__(self, lm: FrozenLM, likelihood: str, scaffold: Scaffold | None = None) -> None:
        if likelihood not in ASKED:
            raise UnknownName("likelihood of the language model", likelihood, ASKED)
        self.lm, self.likelihood, self.scaffold = lm, likelihood, scaffold or Bare()
        self.seen, self.order_weight = SeenQuestions(), 0.0
        self.fingerprint = f"lm {likelihood} {lm.variant} {lm.precision} {identity(self.scaffold)} {ASKED[likelihood]}"
        yes, no = (lm.continuation_ids(ASKED[YES], word) for word in ("yes", "no"))
        # Some tokenizers begin both words with a token for the space.
        self._both = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(yes, no, strict=False))]
        self._words = [ids[len(self._both)] for ids in (yes, no) if len(ids) > len(self._both)]
        if len(self._words) < 2:
            raise UsageError(
                f"the tokens of ' yes' and ' no' are {yes} and {no} to {lm.name!r}, which cannot tell them apart: take "
                f"{NAMED}{QUESTION}"
            )

    def tokens(self, pairs: Sequence[Pair]) -> int:
        """Return the number of tokens that are read to score pairs."""
        return sum(self._row(pair).length for pair in pairs)

    @torch.inference_mode()
    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """Return the log-likelihood, or the log of the odds, of each pair."""
        rows, found, done = [self._row(pair) for pair in pairs], [0.0] * len(pairs), 0
        cost, budget = self.scaffold.length, positions_at_once(self.lm.device)
        for group in by_length(range(len(rows)), lambda number: rows[number].length + cost, budget):
            batch = training_batch([rows[number] for number in group], self.lm, self.scaffold)
            for number, value in zip(group, self._likelihoods(batch).tolist(), strict=True):
                found[number] = value
            done += len(group)
            on_scored(done, len(pairs))
        return found

    def _likelihoods(self, batch: Batch) -> Float[Tensor, "B"]:
        states = self.scaffold.states(self.lm, batch.given)
        if self.likelihood == YES:
            logits = self.lm.logits(states[batch.labels != IGNORE]).float()
            yes, no = logits[:, self._words].unbind(1)
            return yes - no
        found = -self.lm.nll(states, batch.labels)
        return found / (batch.labels != IGNORE).sum(1) if self.likelihood == QUESTION else found

    def _row(self, pair: Pair) -> EncodedQuestion:
        """Return passage, instruction and target; a passage that does not fit the context is cut at its end."""
        passage = f"{pair.title}\n{pair.text}".strip() + "\n\n"
        asked = Question(ASKED[self.likelihood].format(question=pair.question), passage)
        target = {QUESTION: pair.question, YES: "yes", ANSWER: pair.answer}[self.likelihood]
        row = encode(asked, self.lm, target)
        if self.likelihood == YES:
            row = replace(row, ids=[*row.ids, *self._both], target=self._words[:1])
        else:  # without the end token
            row = replace(row, target=row.target[:-1] or row.target)
        over = row.length + self.scaffold.length - self.lm.context
        if over > row.question_at:
            raise ContextFull(
                "a question and the language model's instruction to rate a passage",
                wanted=row.length - row.question_at + self.scaffold.length,
                room=self.lm.context,
                way_out="shorten the question, or rank with another model",
            )
        if over <= 0:
            return row
        kept = row.question_at - over
        return replace(row, ids=row.ids[:kept] + row.ids[row.question_at :], question_at=kept)
