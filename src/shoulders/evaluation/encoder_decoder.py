"""Answers of a sequence-to-sequence model, for the protocol that scaffolds are measured by (Sanh et al. 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.data.batching import by_length
from shoulders.pipeline import Answering, Found, check_asked, likeliest_choice
from shoulders.records import Answer, Question


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
