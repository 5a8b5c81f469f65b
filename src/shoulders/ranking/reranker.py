"""The re-ranker: an encoder that reads a question with a passage, and says how relevant the passage is.

Source: the paper, section 3.1; Karpukhin et al. 2020, section 6, and `dpr/models/reader.py`, whose extractive reader it
is: trained to find answers too, and used for its relevance score.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.errors import CorruptFile, UsageError
from shoulders.ranking.first import for_scoring
from shoulders.ranking.scoring import OnScored, Pair, scored
from shoulders.ranking.seen import Seen
from shoulders.ranking.spans import Span, answer_spans, token_spans
from shoulders.ranking.storage import About, Stored, read_reranker, write_reranker
from shoulders.ranking.towers import Tower

ENCODER = "google-bert/bert-base-uncased"
LENGTH = 350  # tokens of a row
SPREAD = 0.02  # of the heads' weights at the start, as in BERT


@dataclass(frozen=True, slots=True)
class Group:
    """A question of the training set with some of its passages.

    Attributes:
        passages: title and text of each; the first is the positive one.
        answers: that are looked for in the positive passage.
    """

    question: str
    passages: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.passages:
            raise UsageError(f"there is no passage for {self.question!r}: training needs a positive one at least")

    @property
    def pairs(self) -> list[Pair]:
        """The question with each passage."""
        return [Pair(self.question, title, text) for title, text in self.passages]


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
class Reranker(nn.Module):
    """An encoder with heads for the beginning and end of an answer, and for relevance.

    Its forward pass is the training loss; `frozen` gives the scores.

    Attributes:
        length: tokens of a row at most. A passage is cut at its end; a question to half of the row, a title to a
            quarter.
        about: where it comes from, and which questions it has seen.
    """

    def __init__(self, tower: Tower, length: int = LENGTH, dropout: float = 0.1, about: About | None = None) -> None:
        super().__init__()
        self.tower, self.about = tower, about or About(tower.name)
        self.length = min(length, tower.context)
        self.span = nn.Linear(tower.width, 2)
        self.relevance = nn.Linear(tower.width, 1)
        self._check(length, dropout)
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.p = dropout
        if isinstance(pooler := getattr(tower.model, "pooler", None), nn.Module):
            pooler.requires_grad_(False)  # it has no part in the loss
        self.to(tower.device).eval()

    @classmethod
    def start(
        cls, name: str = ENCODER, *, length: int = LENGTH, dropout: float = 0.1, seed: int = 0, dtype: str = "auto"
    ) -> Self:
        """A fresh re-ranker on a pretrained encoder (`Tower.load` says how it is named).

        Args:
            dropout: while training, in every place that the encoder has one.
            seed: of the heads.
            dtype: of its matrix products.

        Raises:
            SourceNotFound, HubUnreachable: there is no such encoder.
            UsageError: it is unlike BERT: no separator tokens, or no characters for its tokens.
        """
        made = cls(Tower.load(name, dtype=dtype), length, dropout)
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for head in (made.span, made.relevance):
                head.weight.copy_(torch.empty(head.weight.shape).normal_(0, SPREAD, generator=drawn))
                head.bias.zero_()
        return made

    @classmethod
    def load(cls, folder: str | Path, *, dtype: str = "auto", device: str = "auto") -> Self:
        """The re-ranker of a folder.

        Raises:
            SourceNotFound, UsageError, CorruptFile: there is none, or one that is broken or of another format.
        """
        folder = Path(folder).expanduser()
        stored = read_reranker(folder)
        loaded = cls(Tower.load(str(folder), dtype=dtype, device=device), stored.length, about=stored.about)
        loaded.put_heads(stored.heads, folder)
        return loaded

    def save(self, folder: Path, about: About) -> None:
        """Write the re-ranker, with what is to be said about it.

        Raises:
            SaveFailed: the place cannot be written, or holds something else.
        """
        heads = {name: value for name, value in self.state_dict().items() if not name.startswith("tower.")}
        write_reranker(folder, self.tower, Stored(about, self.length, heads))

    @property
    def seen(self) -> Seen:
        """The questions that it was trained on."""
        return self.about.seen

    def put_heads(self, heads: Mapping[str, Tensor], source: object) -> None:
        """Take over the weights of trained heads.

        Raises:
            CorruptFile: they do not fit the encoder.
        """
        wanted = {name: value.shape for name, value in self.state_dict().items() if not name.startswith("tower.")}
        found = {name: value.shape for name, value in heads.items()}
        if wanted != found:
            raise CorruptFile(f"the heads of {source} do not fit its encoder ({found}, not {wanted}): train it again")
        self.load_state_dict(heads, strict=False)

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        """The tokens of pairs; each question, title and passage is read once."""
        questions = self._pieces([pair.question for pair in pairs], self.question_room)
        titles = self._pieces([pair.title for pair in pairs], self.length // 4)
        texts = self._pieces([pair.text for pair in pairs], self.length)
        tokenizer = self.tower.tokenizer
        first, between = tokenizer.cls_token_id, tokenizer.sep_token_id
        rows = []
        for pair in pairs:
            before = [first, *questions[pair.question][0], between, *titles[pair.title][0], between]
            ids, offsets = texts[pair.text]
            room = self.length - len(before)
            rows.append(Row(before + ids[:room], len(before), offsets[:room]))
        return rows

    @property
    def question_room(self) -> int:
        """Tokens of a question at most."""
        return self.length // 2

    def too_long(self, questions: Sequence[str]) -> int:
        """How many of the questions have more tokens than are read."""
        found = self._pieces(questions, self.question_room + 1)
        return sum(len(found[question][0]) > self.question_room for question in questions)

    def forward(self, groups: Sequence[Group]) -> Float[Tensor, ""]:
        """The training loss, summed over the groups, with dropout whatever mode the module is in.

        Of each group the cross-entropy of the positive passage being the relevant one, minus the log of the summed
        probabilities of the answers' spans in it: P(start) P(end), each a softmax over the row, as in
        `dpr/models/reader.py` (but not over padding). A positive passage in which no span is found has the first only.
        """
        rows = [row for group in groups for row in self.rows(group.pairs)]
        with self._dropping_out():
            tokens = self.tower.padded([row.ids for row in rows])
            states = self.tower.states(tokens)
        counts = [len(group.passages) for group in groups]
        relevance = self.relevance(states[:, 0])[:, 0].split(counts)
        loss = torch.stack([scores.logsumexp(0) - scores[0] for scores in relevance]).sum()
        first = 0
        for group, count in zip(groups, counts, strict=True):
            row = rows[first]
            spans = token_spans(answer_spans(group.answers, group.passages[0][1]), row.offsets)
            if spans:
                logits = self.span(states[first, : len(row)])
                loss = loss - _log_probability(logits, [(row.passage + a, row.passage + b) for a, b in spans])
            first += count
        return loss

    def frozen(self) -> "FrozenReranker":
        """What scores passages with the weights as they are now."""
        return FrozenReranker(self)

    def fingerprint(self) -> str:
        """Which weights these are, with the length of rows and the type of the matrix products."""
        heads = self.span.state_dict() | {f"r.{name}": value for name, value in self.relevance.state_dict().items()}
        parts = [self.tower.fingerprint(), str(self.tower.compute), str(self.length)]
        digest = blake2b("/".join(parts).encode(), digest_size=16)
        for name in sorted(heads):
            digest.update(heads[name].cpu().numpy().tobytes())
        return digest.hexdigest()

    def _pieces(self, texts: Sequence[str], longest: int) -> dict[str, tuple[list[int], list[Span]]]:
        """Of each different text its tokens, without special ones, and the characters that each stands for."""
        different = list(dict.fromkeys(texts))
        if not different:
            return {}
        found = self.tower.tokenizer(
            different,
            add_special_tokens=False,
            truncation=True,
            max_length=longest,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return dict(zip(different, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True))

    @contextmanager
    def _dropping_out(self) -> Iterator[None]:
        self.train()
        try:
            yield
        finally:
            self.eval()

    def _check(self, length: int, dropout: float) -> None:
        tokenizer = self.tower.tokenizer
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or not tokenizer.is_fast:
            raise UsageError(
                f"{self.tower.name!r} cannot be a re-ranker: it takes an encoder like BERT, with [CLS] and [SEP] "
                f"tokens and a fast tokenizer, e.g. {ENCODER}"
            )
        if length < 16 or not 0 <= dropout < 1:
            raise UsageError(f"a re-ranker reads 16 tokens at least and has a dropout below 1: not {length}, {dropout}")


@final
class FrozenReranker:
    """A re-ranker's scores. The weights are copied once, in the type of its matrix products."""

    def __init__(self, reranker: Reranker) -> None:
        self.fingerprint = reranker.fingerprint()
        self._rows, self._padded = reranker.rows, reranker.tower.padded
        self._device = reranker.tower.device
        self._model = for_scoring(reranker.tower.model, reranker.tower.compute)
        self._weight, self._bias = (part.detach().clone() for part in reranker.relevance.parameters())

    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """The relevance of each pair's passage for its question, as a logit."""
        return scored(pairs, self._rows, self._relevance, self._device, on_scored)

    def _relevance(self, rows: list[Row]) -> Float[Tensor, "B"]:
        tokens = self._padded([row.ids for row in rows])
        mask = None if len(rows[0]) == len(rows[-1]) else tokens.mask
        states = self._model(input_ids=tokens.ids, attention_mask=mask).last_hidden_state[:, 0]
        return nn.functional.linear(states.float(), self._weight, self._bias)[:, 0]


def reranker_loss(module: nn.Module, groups: Sequence[Group]) -> Tensor:
    """The summed loss of a micro-batch of whole groups, as `training.loop.fit` asks for it."""
    return module(groups)


def _log_probability(logits: Float[Tensor, "S 2"], spans: Sequence[Span]) -> Float[Tensor, ""]:
    """The log of the summed probability of spans of tokens."""
    start, end = logits.log_softmax(0).unbind(1)
    firsts, lasts = [first for first, _ in spans], [last - 1 for _, last in spans]
    return (start[firsts] + end[lasts]).logsumexp(0)
