"""A question and a passage as one row of tokens.

Source: Karpukhin et al. 2020, `dpr/data/reader_data.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from shoulders.backbone.frozen import pad_right
from shoulders.errors import UsageError
from shoulders.ranking.scoring import Pair
from shoulders.ranking.spans import Span
from shoulders.ranking.towers import Tower
from shoulders.records import Tokens

ENCODER = "google-bert/bert-base-uncased"
LENGTH, SHORTEST = 350, 16  # tokens of a row


@dataclass(frozen=True, slots=True)
class Row:
    """`[CLS] question [SEP] title [SEP] passage` as token ids.

    Attributes:
        passage: where the tokens of the passage begin.
        offsets: of each of them, the characters that it stands for.
    """

    ids: list[int]
    passage: int
    offsets: list[Span]

    def __len__(self) -> int:
        return len(self.ids)


@final
class PairReader:
    """Makes rows of pairs, with the tokenizer of an encoder.

    Attributes:
        length: tokens of a row at most. A passage is cut at its end.
        question_room: tokens of a question at most, half of a row; `too_long` counts those that are cut to it.
        title_room: tokens of a title at most, a quarter of a row.

    Raises:
        UsageError: the encoder is unlike BERT: no separator tokens, or no characters for its tokens.
    """

    def __init__(self, tower: Tower, length: int = LENGTH) -> None:
        tokenizer = tower.tokenizer
        first, between, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        if not isinstance(first, int) or not isinstance(between, int) or not tokenizer.is_fast:
            raise UsageError(
                f"{tower.name!r} cannot be a re-ranker: it takes an encoder like BERT, with [CLS] and [SEP] tokens and "
                f"a fast tokenizer, e.g. {ENCODER}"
            )
        if length < SHORTEST:
            raise UsageError(f"a re-ranker that reads {length} tokens: {SHORTEST} at least, {LENGTH} are usual")
        self.length = min(length, tower.context)
        self.question_room, self.title_room = self.length // 2, self.length // 4
        self._tokens = tower.tokens
        self._first, self._between, self._pad = first, between, pad if isinstance(pad, int) else 0

    def __call__(self, pairs: Sequence[Pair]) -> list[Row]:
        """The rows of pairs; each different question, title and passage is read once."""
        questions = self._pieces([pair.question for pair in pairs], self.question_room)
        titles = self._pieces([pair.title for pair in pairs], self.title_room)
        texts = self._pieces([pair.text for pair in pairs], self.length)
        rows: list[Row] = []
        for pair in pairs:
            question, title = questions[pair.question][0], titles[pair.title][0]
            before = [self._first, *question, self._between, *title, self._between]
            ids, offsets = texts[pair.text]
            room = self.length - len(before)
            rows.append(Row(before + ids[:room], len(before), offsets[:room]))
        return rows

    def padded(self, rows: Sequence[Row]) -> Tokens:
        """Rows as one batch."""
        return pad_right([row.ids for row in rows], self._pad)

    def too_long(self, questions: Sequence[str]) -> int:
        """How many of the questions have more tokens than are read."""
        found = self._pieces(questions, self.question_room + 1)
        return sum(len(found[question][0]) > self.question_room for question in questions)

    def _pieces(self, texts: Sequence[str], longest: int) -> dict[str, tuple[list[int], list[Span]]]:
        """Of each different text its tokens, without special ones, and the characters that each stands for."""
        different = list(dict.fromkeys(texts))
        if not different:
            return {}
        found = self._tokens(
            different,
            add_special_tokens=False,
            truncation=True,
            max_length=longest,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return dict(zip(different, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True))
