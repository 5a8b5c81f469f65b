"""The re-ranker: an encoder that scores how relevant a passage is to a question; its training loss and its files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoulders.data.matching import Span, answer_spans
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.retrieval.scoring import (
    ENCODER,
    LENGTH,
    OnScored,
    Pair,
    PairTokenizer,
    PairTokens,
    SeenQuestions,
    scored,
    scoring_copy,
    token_spans,
)
from shoulders.retrieval.text_encoder import TextEncoder
from shoulders.store.files import (
    BEST,
    atomic_folder,
    check_finite,
    check_format,
    read_json,
    read_tensors,
    recover_folder,
    write_json,
    write_tensors,
)

DESCRIPTION, HEADS, SEEN = "reranker.json", "heads.safetensors", "seen.safetensors"
FORMAT, VERSION = "shoulders-reranker", 1
QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class RerankerOrigin:
    """The origin of a re-ranker.

    Attributes:
        encoder: the pretrained encoder that training started from.
        recipe: the recipe of the training, if any.
        measured: results of the evaluation, if any.
        seen: the questions that it was trained on.
    """

    encoder: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    seen: SeenQuestions = field(default_factory=SeenQuestions)


@dataclass(frozen=True, slots=True)
class RerankerFiles:
    """The content of a re-ranker's files beside its encoder."""

    about: RerankerOrigin
    length: int
    heads: Mapping[str, Tensor]
    order_weight: float = 0.0


def write_reranker(folder: Path, tower: TextEncoder, stored: RerankerFiles) -> None:
    """Write all files of a re-ranker, in place only when they are whole.

    Raises:
        SaveFailed: the place cannot be written, or holds something else.
    """
    about = stored.about
    with atomic_folder(folder, DESCRIPTION) as scratch:
        tower.save(scratch)
        write_tensors(scratch / HEADS, stored.heads)
        write_tensors(scratch / SEEN, {QUESTIONS: about.seen.tensor()})
        write_json(
            scratch / DESCRIPTION,
            {
                "format": FORMAT,
                "version": VERSION,
                "encoder": about.encoder,
                "length": stored.length,
                "order_weight": stored.order_weight,
                "recipe": dict(about.recipe),
                "measured": dict(about.measured),
            },
        )


def reranker_folder(folder: Path) -> Path:
    """Return the folder of a re-ranker; in a run's folder, that of its best."""
    inner = recover_folder(folder / BEST)
    return inner if (inner / DESCRIPTION).exists() else folder


def is_reranker(folder: Path) -> bool:
    """Return whether a folder holds a re-ranker, or a run that trained one."""
    return (reranker_folder(folder.expanduser()) / DESCRIPTION).exists()


def read_reranker(folder: Path) -> RerankerFiles:
    """Read the files of `write_reranker` beside the encoder.

    Raises:
        SourceNotFound: there is no re-ranker in the folder.
        UsageError: it is of another format.
        CorruptFile: a file is missing, truncated or broken.
    """
    folder = recover_folder(folder)
    if not (folder / DESCRIPTION).exists():
        raise SourceNotFound(f"there is no re-ranker in {folder}: {DESCRIPTION} is missing")
    content = read_json(folder / DESCRIPTION)
    check_format(content, (FORMAT, VERSION), folder, "train the re-ranker again, or use the version that wrote it")
    try:
        seen = SeenQuestions.from_tensor(read_tensors(folder / SEEN)[QUESTIONS])
        about = RerankerOrigin(content["encoder"], content["recipe"], content["measured"], seen)
        order_weight = float(content.get("order_weight", 0.0))
        return RerankerFiles(about, int(content["length"]), read_tensors(folder / HEADS), order_weight)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{folder / DESCRIPTION} is not a re-ranker's description: {error!r}") from error


DROPOUT = 0.1  # in training, BERT's own
SPREAD = 0.02  # of the heads' weights at the start, as in BERT
SIMILARITY = 10.0  # factor of the cosine between question and passage, so that it is of the size of a logit


@dataclass(frozen=True, slots=True)
class Group:
    """A question of the training set with some of its passages.

    Attributes:
        passages: title and text of each; the first is the positive one.
        answers: searched for in the positive passage.
        order: the retriever's score of each passage, standardised over all that it found; only a re-ranker that
            corrects the retriever's order reads it.
        taught: a teacher's distribution over the passages; none if empty.
    """

    question: str
    passages: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
    order: tuple[float, ...] = ()
    taught: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.passages:
            raise UsageError(f"there is no passage for {self.question!r}: training needs at least a positive one")

    @property
    def pairs(self) -> list[Pair]:
        """The question with each passage."""
        return [Pair(self.question, title, text) for title, text in self.passages]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the parts of a re-ranker's loss; the defaults are the paper's.

    Attributes:
        span: of the loss of the answers' spans, beside that of relevance.
        teacher: share of a teacher's distribution in the target of relevance; the positive passage has the rest.
    """

    span: float = 1.0
    teacher: float = 0.0


PAPER = LossWeights()


@final
class Reranker(nn.Module):
    """An encoder with heads for the start and end of an answer, and for relevance.

    The forward pass computes the training loss; `frozen` returns the scorer.

    With `order_weight`, the score of a passage is `order_weight` times the retriever's standardised score plus
    `gate * (head(CLS) + 10 cos(question, passage))`, where both vectors are means over their own tokens in the row.
    The gate starts at 0, so that training starts at the retriever's order and leaves it only where that lowers the
    loss; the cosine is what the encoder knew as a bi-encoder. Without it, the score is `head(CLS)` (the paper, section
    3.1).

    Args:
        order_weight: weight of the retriever's standardised score; 0 for a re-ranker that does not know it.

    Attributes:
        rows: the tokenizer of pairs.
        about: the origin, and the questions that it has seen.
    """

    def __init__(
        self,
        tower: TextEncoder,
        length: int = LENGTH,
        dropout: float = DROPOUT,
        about: RerankerOrigin | None = None,
        order_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.tower, self.about = tower, about or RerankerOrigin(tower.name)
        self.rows = PairTokenizer(tower, length)
        self.span = nn.Linear(tower.width, 2)
        self.relevance = nn.Linear(tower.width, 1)
        self.gate = nn.Parameter(torch.zeros(())) if order_weight else None
        self.order_weight = order_weight
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1, got {dropout}; 0.1 is usual")
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.p = dropout
        self.to(tower.device).eval()

    @classmethod
    def start(
        cls,
        name: str = ENCODER,
        *,
        length: int = LENGTH,
        dropout: float = DROPOUT,
        seed: int = 0,
        dtype: str = "auto",
        order_weight: float = 0.0,
    ) -> Self:
        """Return a new re-ranker on a pretrained encoder (named as in `TextEncoder.load`).

        Args:
            name: of the encoder; of the folder of a re-ranker, it starts from its encoder and heads, the gate at 0.
            dropout: in training, in all dropout layers of the encoder.
            seed: of the heads.
            dtype: of its matrix products.
            order_weight: see the class.

        Raises:
            SourceNotFound, HubUnreachable: there is no such encoder.
            UsageError: it lacks BERT's special tokens or a fast tokenizer.
        """
        folder = reranker_folder(Path(name).expanduser()) if is_reranker(Path(name)) else None
        earlier = read_reranker(folder) if folder else None
        about = RerankerOrigin(name, seen=earlier.about.seen) if earlier else None
        tower = TextEncoder.load(str(folder or name), dtype=dtype)
        made = cls(tower, length, dropout, about, order_weight=order_weight)
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for head in (made.span, made.relevance):
                head.weight.copy_(torch.empty(head.weight.shape).normal_(0, SPREAD, generator=drawn))
                head.bias.zero_()
        if earlier:
            gate = {} if made.gate is None else {"gate": made.gate.detach()}
            made.load_heads({key: value for key, value in earlier.heads.items() if key != "gate"} | gate, folder)
        return made

    @classmethod
    def load(cls, folder: str | Path, *, dtype: str = "auto", device: str = "auto") -> Self:
        """Load the re-ranker of a folder.

        Raises:
            SourceNotFound, UsageError, CorruptFile: there is no re-ranker, or it is broken or of another format.
        """
        folder = Path(folder).expanduser()
        stored = read_reranker(folder)
        tower = TextEncoder.load(str(folder), dtype=dtype, device=device)
        loaded = cls(tower, stored.length, about=stored.about, order_weight=stored.order_weight)
        loaded.load_heads(stored.heads, folder)
        return loaded

    def save(self, folder: Path, about: RerankerOrigin) -> None:
        """Write the re-ranker, with its origin.

        Raises:
            SaveFailed: the place cannot be written, or holds something else.
        """
        heads = {name: value for name, value in self.state_dict().items() if not name.startswith("tower.")}
        write_reranker(folder, self.tower, RerankerFiles(about, self.rows.length, heads, self.order_weight))

    @property
    def seen(self) -> SeenQuestions:
        """The questions that it was trained on."""
        return self.about.seen

    def load_heads(self, heads: Mapping[str, Tensor], source: object) -> None:
        """Load the weights of trained heads.

        Raises:
            CorruptFile: they do not fit the encoder.
        """
        wanted = {name: value.shape for name, value in self.state_dict().items() if not name.startswith("tower.")}
        found = {name: value.shape for name, value in heads.items()}
        if wanted != found:
            raise CorruptFile(f"the heads of {source} do not fit its encoder ({found}, not {wanted}): train it again")
        check_finite(heads, source)
        self.load_state_dict(heads, strict=False)

    def forward(self, groups: Sequence[Group], weights: LossWeights = PAPER) -> Float[Tensor, ""]:
        """Return the training loss, summed over the groups, with dropout in whatever mode the module is.

        The loss of a group is the cross-entropy of relevance, with the positive passage as the target, minus the log of
        the summed probabilities of the answers' spans in it: P(start) P(end), each a softmax over the row, as in
        `dpr/models/reader.py` (but not over padding). A positive passage without a span has the first part only.
        A teacher's distribution over the passages (`Group.taught`) takes its share of the target from the positive.
        """
        rows = [row for group in groups for row in self.rows(group.pairs)]
        with self._dropping_out():
            states = self.tower.states(self.rows.padded(rows).to(self.tower.device))
        counts = [len(group.passages) for group in groups]
        scores = relevance(states, rows, self.relevance.weight, self.relevance.bias, self.gate)
        if self.order_weight:
            order = torch.tensor([one for group in groups for one in group.order], device=states.device)
            scores = scores + self.order_weight * order
        loss = torch.zeros((), device=states.device)
        first = 0
        for group, some in zip(groups, scores.split(counts), strict=True):
            loss = loss - (_target(group, weights.teacher).to(some) * some.log_softmax(0)).sum()
            if weights.span:
                loss = loss + weights.span * self._span_loss(group, rows[first], states[first])
            first += len(group.passages)
        return loss

    def _span_loss(self, group: Group, row: PairTokens, states: Float[Tensor, "S E"]) -> Float[Tensor, ""]:
        """Return minus the log of the summed probabilities of the answers' spans in the positive passage."""
        spans = token_spans(answer_spans(group.answers, group.passages[0][1]), row.offsets)
        if not spans:
            return states.new_zeros(())
        logits = self.span(states[: len(row)])
        return -_log_probability(logits, [(row.passage + a, row.passage + b) for a, b in spans])

    def frozen(self) -> "FrozenReranker":
        """Return a scorer with a copy of the present weights."""
        return FrozenReranker(self)

    def fingerprint(self) -> str:
        """Return a hash of the weights, the length of rows and the type of the matrix products."""
        heads = self.span.state_dict() | {f"r.{name}": value for name, value in self.relevance.state_dict().items()}
        parts = [self.tower.fingerprint(), str(self.tower.compute), str(self.rows.length)]
        if self.gate is not None:
            heads["gate"] = self.gate.detach()
            parts.append(str(self.order_weight))
        digest = blake2b("/".join(parts).encode(), digest_size=16)
        for name in sorted(heads):
            digest.update(heads[name].cpu().numpy().tobytes())
        return digest.hexdigest()

    @contextmanager
    def _dropping_out(self) -> Iterator[None]:
        self.train()
        try:
            yield
        finally:
            self.eval()


@final
class FrozenReranker(nn.Module):
    """Scores of a re-ranker whose weights are copied once, in the type of its matrix products.

    A module, so that a training that orders passages by earlier weights has them in its checkpoints.
    """

    _weight: Tensor
    _bias: Tensor
    _gate: Tensor | None

    def __init__(self, reranker: Reranker) -> None:
        super().__init__()
        self.fingerprint, self.seen, self.order_weight = reranker.fingerprint(), reranker.seen, reranker.order_weight
        self._rows, self._device = reranker.rows, reranker.tower.device
        whole = reranker.gate is not None  # whose similarity is one of all positions
        self._model = scoring_copy(reranker.tower.model, reranker.tower.compute, whole=whole)
        for name, part in (*reranker.relevance.named_parameters(), ("gate", reranker.gate)):
            self.register_buffer(f"_{name}", None if part is None else part.detach().clone())

    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """Return the relevance of each pair's passage to its question, as a logit.

        With an `order_weight` that is a correction, to be added to the retriever's score (`scoring.corrected`).
        """
        return scored(pairs, self._rows, self._relevance, self._device, on_scored)

    def tokens(self, pairs: Sequence[Pair]) -> int:
        """Return the number of tokens that are read to score pairs."""
        return sum(map(len, self._rows(pairs)))

    def _relevance(self, rows: list[PairTokens]) -> Float[Tensor, "B"]:
        tokens = self._rows.padded(rows).to(self._device)
        mask = None if len(rows[0]) == len(rows[-1]) else tokens.mask
        states = self._model(input_ids=tokens.ids, attention_mask=mask).last_hidden_state
        return relevance(states, rows, self._weight, self._bias, self._gate)


def relevance(
    states: Float[Tensor, "B S E"], rows: Sequence[PairTokens], weight: Tensor, bias: Tensor, gate: Tensor | None
) -> Float[Tensor, "B"]:
    """Return the relevance of each row's passage to its question, by the head alone or behind a gate (`Reranker`).

    Args:
        states: of the encoder, for `[CLS] question [SEP] title [SEP] passage` and padding.
        rows: the tokens of each pair.
        weight: of the head.
        bias: of the head.
        gate: factor of head and similarity together; None for the head alone.
    """
    scores = nn.functional.linear(states[:, 0].float(), weight, bias)[:, 0]
    if gate is None:
        return scores
    places = torch.arange(states.shape[1], device=states.device)
    between = torch.tensor([row.question for row in rows], device=states.device)[:, None]
    ends = torch.tensor([len(row) for row in rows], device=states.device)[:, None]
    question = _mean(states, (places >= 1) & (places < between))
    passage = _mean(states, (places > between) & (places < ends))  # with its title
    return gate * (scores + SIMILARITY * nn.functional.cosine_similarity(question, passage, dim=1))


def _mean(states: Float[Tensor, "B S E"], which: Bool[Tensor, "B S"]) -> Float[Tensor, "B E"]:
    """Return the mean of the states at the positions that are True."""
    weights = which[:, :, None].to(states.dtype)
    return (states * weights).sum(1).float() / weights.sum(1).float().clamp(min=1)


def reranker_loss(module: nn.Module, groups: Sequence[Group]) -> Tensor:
    """Return the summed loss of a micro-batch of whole groups, for `training.loop.fit`."""
    return module(groups)


def _target(group: Group, teacher: float) -> Float[Tensor, "N"]:
    """Return the distribution over a group's passages that its scores are trained towards."""
    positive = torch.zeros(len(group.passages))
    positive[0] = 1.0
    return (1 - teacher) * positive + teacher * torch.tensor(group.taught) if group.taught else positive


def _log_probability(logits: Float[Tensor, "S 2"], spans: Sequence[Span]) -> Float[Tensor, ""]:
    """Return the log of the summed probability of spans of tokens."""
    start, end = logits.log_softmax(0).unbind(1)
    firsts, lasts = [first for first, _ in spans], [last - 1 for _, last in spans]
    return (start[firsts] + end[lasts]).logsumexp(0)
