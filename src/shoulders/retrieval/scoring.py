"""Scoring passages for questions: the interface of a ranker, the rows of tokens that it reads, and batched scoring.

Also the set of questions that a ranker was trained on and must not rank, and interpolation with the retriever's scores.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from copy import deepcopy
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from statistics import fmean, pstdev
from typing import Any, Protocol, Self, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shoulders.backbone.frozen import pad_right
from shoulders.data.matching import Span, question_words, word_places
from shoulders.engine.batches import by_length
from shoulders.errors import UsageError
from shoulders.records import Tokens
from shoulders.retrieval.text_encoder import TextEncoder


@final
@dataclass(frozen=True)
class SeenQuestions:
    """A set of questions as 8-byte hashes, which ignore case, punctuation and white space.

    Two of 100,000 questions share a hash with a probability of 3 in 10,000,000,000; a question is then taken for seen
    that was not.
    """

    hashes: frozenset[int] = frozenset()

    @classmethod
    def of(cls, questions: Iterable[str]) -> Self:
        """Return the set of these questions."""
        return cls(frozenset(map(_hash, questions)))

    @classmethod
    def from_tensor(cls, hashes: Int[Tensor, "N"]) -> Self:
        """Return the set that `tensor` returned."""
        return cls(frozenset(hashes.tolist()))

    def tensor(self) -> Int[Tensor, "N"]:
        """Return the hashes in ascending order."""
        return torch.from_numpy(np.array(sorted(self.hashes), dtype=np.int64))

    def __contains__(self, question: str) -> bool:
        return _hash(question) in self.hashes

    def __len__(self) -> int:
        return len(self.hashes)


def _hash(question: str) -> int:
    digest = blake2b(question_words(question).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


AT_ONCE = 8_192  # pairs that are held as tokens at the same time, and sorted by length
POSITIONS = {"cpu": 1_024}  # of a batch: what it computes stays in the caches of a processor
MANY_POSITIONS = 65_536  # of a batch on any other device

OnScored = Callable[[int, int], None]  # pairs done, pairs in all
Row = TypeVar("Row", bound=Sized)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a passage that is to be scored for it; the answer only for a teacher, who knows it."""

    question: str
    title: str
    text: str
    answer: str = ""


class Ranker(Protocol):
    """A model that reads a question and a passage together and scores how relevant the passage is."""

    @property
    def fingerprint(self) -> str:
        """An identity of the model: equal fingerprints give equal scores."""
        ...

    @property
    def seen(self) -> SeenQuestions:
        """The questions that it is known to have been trained on."""
        ...

    @property
    def order_weight(self) -> float:
        """Weight of the retriever's standardised score in the sum that it was trained for (`corrected`); 0: none."""
        ...

    def tokens(self, pairs: Sequence[Pair]) -> int:
        """Return the number of tokens that are read to score pairs."""
        ...

    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """Return a score for each pair, in their order; higher is more relevant."""
        ...


def scored(
    pairs: Sequence[Pair],
    encode: Callable[[Sequence[Pair]], Sequence[Row]],
    score: Callable[[list[Row]], Float[Tensor, "B"]],
    device: torch.device,
    on_scored: OnScored,
) -> list[float]:
    """Return the scores of pairs, batched by their number of tokens, whatever questions they belong to.

    Args:
        encode: returns the tokens of each pair.
        score: returns the scores of some rows of tokens.
        device: of the model, which decides the size of a batch.
    """
    budget = positions_at_once(device)
    found = [0.0] * len(pairs)
    done = 0
    for start in range(0, len(pairs), AT_ONCE):
        rows = encode(pairs[start : start + AT_ONCE])
        for numbers in by_length(range(len(rows)), lambda number, rows=rows: len(rows[number]), budget):
            with torch.inference_mode():
                values = score([rows[number] for number in numbers]).float().tolist()
            for number, value in zip(numbers, values, strict=True):
                found[start + number] = value
            done += len(numbers)
            on_scored(done, len(pairs))
    return found


def positions_at_once(device: torch.device) -> int:
    """Return the positions of a batch, padding included."""
    return POSITIONS.get(device.type, MANY_POSITIONS)


LONGEST = 10  # tokens of an extracted answer


def token_spans(spans: Sequence[Span], offsets: Sequence[Span]) -> list[Span]:
    """Return spans of characters as spans of tokens; those that are not wholly within the tokens are left out.

    Args:
        offsets: characters of each token, in their order.
    """
    found: dict[Span, None] = {}
    for start, end in spans:
        inside = [number for number, (first, last) in enumerate(offsets) if first < end and last > start]
        if inside and offsets[inside[-1]][1] >= end:
            found[inside[0], inside[-1] + 1] = None
    return list(found)


def best_span(start: Float[Tensor, "S"], end: Float[Tensor, "S"], longest: int = LONGEST) -> Span:
    """Return the span of at most `longest` tokens with the largest sum of its two logits."""
    size = len(start)
    allowed = torch.ones(size, size, dtype=torch.bool, device=start.device).triu().tril(longest - 1)
    sums = (start[:, None] + end[None]).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(sums.argmax()), size)
    return first, last + 1


def whole_words(span: Span, text: str) -> Span:
    """Return the span of characters, extended where it ends inside a word or a character of several code points."""
    first, last = span
    inside = [place for place in word_places(text) if place[0] < last and place[1] > first]
    return (min(first, inside[0][0]), max(last, inside[-1][1])) if inside else span


ENCODER = "google-bert/bert-base-uncased"
LENGTH, SHORTEST = 350, 16  # tokens of a row


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Token ids of `[CLS] question [SEP] title [SEP] passage`.

    Attributes:
        question: where the tokens of the question end.
        passage: where the tokens of the passage begin.
        offsets: the characters of each of these tokens.
    """

    ids: list[int]
    question: int
    passage: int
    offsets: list[Span]

    def __len__(self) -> int:
        return len(self.ids)


@final
class PairTokenizer:
    """Tokenizer of pairs for an encoder like BERT.

    Attributes:
        length: tokens of a row at most. A passage is cut at its end.
        question_room: tokens of a question at most, half of a row; `too_long` counts those that are cut to it.
        title_room: tokens of a title at most, a quarter of a row.

    Raises:
        UsageError: the encoder lacks BERT's special tokens or a fast tokenizer, or `length` is too small.
    """

    def __init__(self, tower: TextEncoder, length: int = LENGTH) -> None:
        tokenizer = tower.tokenizer
        first, between, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        if not isinstance(first, int) or not isinstance(between, int) or not tokenizer.is_fast:
            raise UsageError(
                f"{tower.name!r} cannot be a re-ranker: it takes an encoder like BERT, with [CLS] and [SEP] tokens and "
                f"a fast tokenizer, e.g. {ENCODER}"
            )
        if length < SHORTEST:
            raise UsageError(f"length of a row must be at least {SHORTEST} tokens, got {length}; {LENGTH} are usual")
        self.length = min(length, tower.context)
        self.question_room, self.title_room = self.length // 2, self.length // 4
        self._tokens = tower.tokens
        self._first, self._between, self._pad = first, between, pad if isinstance(pad, int) else 0

    def __call__(self, pairs: Sequence[Pair]) -> list[PairTokens]:
        """Return the rows of pairs; each distinct question, title and passage is tokenised once."""
        questions = self._pieces([pair.question for pair in pairs], self.question_room)
        titles = self._pieces([pair.title for pair in pairs], self.title_room)
        texts = self._pieces([pair.text for pair in pairs], self.length)
        rows: list[PairTokens] = []
        for pair in pairs:
            question, title = questions[pair.question][0], titles[pair.title][0]
            before = [self._first, *question, self._between, *title, self._between]
            ids, offsets = texts[pair.text]
            room = self.length - len(before)
            rows.append(PairTokens(before + ids[:room], len(question) + 1, len(before), offsets[:room]))
        return rows

    def padded(self, rows: Sequence[PairTokens]) -> Tokens:
        """Return rows as one batch."""
        return pad_right([row.ids for row in rows], self._pad)

    def too_long(self, questions: Sequence[str]) -> int:
        """Return the number of questions that have more tokens than are read."""
        found = self._pieces(questions, self.question_room + 1)
        return sum(len(found[question][0]) > self.question_room for question in questions)

    def _pieces(self, texts: Sequence[str], longest: int) -> dict[str, tuple[list[int], list[Span]]]:
        """Return for each distinct text its tokens, without special ones, and the characters of each token."""
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


KNOWN = {"BertLayer", "RobertaLayer", "XLMRobertaLayer", "ElectraLayer"}  # of the same structure
Model = TypeVar("Model", bound=PreTrainedModel)


def scoring_copy(model: Model, dtype: torch.dtype, *, whole: bool = False) -> Model:
    """Return a copy of an encoder or a classifier that computes the final state of the first position only.

    The last layer needs keys and values of all positions, but queries and everything after them of one only: the score
    is the same, and five sixths of a layer's matrix products are saved. Other families compute all states.

    Args:
        dtype: of the copy's weights.
        whole: compute the final states of all positions.
    """
    copy = deepcopy(model)
    nn.Module.to(copy, dtype).eval().requires_grad_(False)
    layers: Any = getattr(getattr(copy.base_model, "encoder", None), "layer", None)
    if not whole and layers and type(layers[-1]).__name__ in KNOWN:
        copy.set_attn_implementation("sdpa")  # whose mask is a matrix
        layers[-1] = _FirstPosition(layers[-1])
    return copy


@final
class _FirstPosition(nn.Module):
    """A BERT layer that computes the output of the first position alone."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Float[Tensor, "B S E"], mask: Tensor | None = None, *_rest: Any, **_named: Any
    ) -> Float[Tensor, "B 1 E"]:
        attention = self.layer.attention.self
        rows, positions, _ = hidden.shape
        heads = (rows, positions, attention.num_attention_heads, attention.attention_head_size)
        first = hidden[:, :1]
        query = attention.query(first).view(rows, 1, *heads[2:]).transpose(1, 2)
        key = attention.key(hidden).view(heads).transpose(1, 2)
        value = attention.value(hidden).view(heads).transpose(1, 2)
        seen = None if mask is None else mask[:, :, :1]
        read = nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=attention.scaling)
        attended = self.layer.attention.output(read.transpose(1, 2).reshape(rows, 1, -1), first)
        return self.layer.feed_forward_chunk(attended)


WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)  # tried on development questions


def interpolated(scores: Sequence[float], found: Sequence[float], weight: float) -> list[float]:
    """Return the scores of one question's passages plus `weight` times the retriever's, both standardised over them.

    Both are standardised since their scales differ; so a sum depends on the other passages of the question.

    Args:
        scores: of the re-ranker.
        found: of the retriever, for the same passages.
        weight: 0 leaves the re-ranker's scores as they are.
    """
    if not weight:
        return list(scores)
    pairs = zip(standardised(scores), standardised(found), strict=True)
    return [score + weight * other for score, other in pairs]


def corrected(scores: Sequence[float], found: Sequence[float], weight: float) -> list[float]:
    """Return `weight` times the retriever's standardised scores plus a re-ranker's corrections, one question's.

    Args:
        scores: of a re-ranker that was trained as a correction of the retriever's order.
        found: of the retriever, for the same passages.
        weight: the re-ranker's `order_weight`.
    """
    return [weight * other + score for score, other in zip(scores, standardised(found), strict=True)]


def by_question(scores: Iterable[float], found: Sequence[Sized]) -> list[list[float]]:
    """Return the scores of each question's passages, given those of all of them, one question after the other."""
    left = iter(scores)
    return [list(islice(left, len(passages))) for passages in found]


def ordering(
    scores: Sequence[float], found: Sequence[float], *, order_weight: float, weight: float = 0.0
) -> list[float]:
    """Return the scores by which the passages of one question are ordered.

    Args:
        scores: of the re-ranker.
        found: of the retriever, for the same passages.
        order_weight: the re-ranker's own (`corrected`).
        weight: weight of the retriever's scores beside those of a re-ranker without one of its own (`interpolated`).
    """
    return corrected(scores, found, order_weight) if order_weight else interpolated(scores, found, weight)


def standardised(scores: Sequence[float]) -> list[float]:
    """Return the scores with mean 0 and standard deviation 1; zeros where they are equal."""
    spread = pstdev(scores) if scores else 0.0
    mean = fmean(scores) if scores else 0.0
    return [(score - mean) / spread if spread else 0.0 for score in scores]
