"""A dense retriever: questions and passages as vectors, their dot product as the score.

Source: Karpukhin et al. 2020, section 3.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from shoulders.engine.batches import by_length
from shoulders.records import Tokens
from shoulders.retrieval.towers import CLS, OURS, PASSAGE, QUESTION, SHARED, Reading, Tower, place_of, saved
from shoulders.store.files import recovered, whole_folder, write_json

POSITIONS = 65_536  # encoded at once
POSITIONS_OF_CPU = 4096  # more do not stay in its caches, and cost a sixth of the speed


@final
class BiEncoder(nn.Module):
    """Two encoders, or one that serves as both, and how they read texts.

    Attributes:
        name: the source it was loaded from.
        dimension: E, numbers of a vector.
    """

    def __init__(self, question: Tower, passage: Tower, reading: Reading, name: str) -> None:
        super().__init__()
        self.passage, self.reading, self.name = passage, reading, name
        self.own_question = None if question is passage else question  # what is shared has its weights once
        self.dimension = passage.width

    @classmethod
    def load(cls, name: str, *, pooling: str = "", dtype: str = "auto", device: str = "auto") -> Self:
        """Load a retriever.

        Args:
            name: a hub id, folder or package of: DPR's encoders (one of the two, or `question|passage`), Spider, a
                sentence-transformers model, a retriever saved by `save`, or any encoder.
            pooling: "cls" or "mean"; "" for what is said where it lies, and where nothing is said, the mean.
            dtype: of matrix products (`Tower.load`).

        Raises:
            SourceNotFound, HubUnreachable: there is no such model, or it cannot be fetched.
            UsageError: it is of a kind that is not read, or there is no such pooling.
        """
        recovered(Path(name))
        place = place_of(name)
        reading = replace(place.reading, pooling=pooling) if pooling else place.reading
        source, subfolder = place.question
        question = Tower.load(source, dtype=dtype, device=device, subfolder=subfolder)
        if place.passage == place.question:
            return cls(question, question, reading, name)
        source, subfolder = place.passage
        return cls(question, Tower.load(source, dtype=dtype, device=device, subfolder=subfolder), reading, name)

    def save(self, folder: Path) -> None:
        """Write the retriever as `load` reads it: its encoders as transformers does, and how they read texts.

        Raises:
            SaveFailed: the folder cannot be written, or holds something else; what was in it is as it was.
        """
        with whole_folder(folder, OURS) as scratch:
            if self.shared:
                self.passage.save(scratch / SHARED)
            else:
                self.question.save(scratch / QUESTION)
                self.passage.save(scratch / PASSAGE)
            write_json(scratch / OURS, saved(self.reading, shared=self.shared))

    @property
    def question(self) -> Tower:
        """The encoder of questions."""
        return self.own_question or self.passage

    @property
    def shared(self) -> bool:
        """One encoder serves questions and passages."""
        return self.own_question is None

    def fingerprint(self) -> str:
        """Which weights these are, to the last bit, and how texts are read: vectors of another do not fit to these."""
        towers = (
            [self.passage.fingerprint()] if self.shared else [self.question.fingerprint(), self.passage.fingerprint()]
        )
        return blake2b(json.dumps([towers, asdict(self.reading)]).encode(), digest_size=16).hexdigest()

    def question_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of questions, as they are read."""
        return self.question.rows(self.reading.questions(texts), self.reading.longest)

    def passage_rows(self, titles: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Token ids of passages, as they are read."""
        return self.passage.rows(self.reading.passages(titles, texts), self.reading.longest)

    def question_vectors(self, tokens: Tokens) -> Float[Tensor, "B E"]:
        """Vectors of questions, in fp32; gradients go to the weights."""
        return vectors(self.question, tokens, self.reading)

    def passage_vectors(self, tokens: Tokens) -> Float[Tensor, "B E"]:
        """Vectors of passages, in fp32; gradients go to the weights."""
        return vectors(self.passage, tokens, self.reading)

    def encode_questions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of questions [N, E], each as if it were alone up to rounding; longer ones are cut at the end."""
        with _measuring(self):
            return self._encoded(self.question, self.question_rows(texts))

    def encode_passages(self, titles: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of passages [N, E], each as if it were alone up to rounding; longer ones are cut at the end."""
        with _measuring(self):
            return self._encoded(self.passage.lowered(), self.passage_rows(titles, texts))

    def _encoded(self, tower: Tower, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        found = np.empty((len(rows), self.dimension), np.float32)
        budget = POSITIONS_OF_CPU if tower.device.type == "cpu" else POSITIONS
        for group in by_length(range(len(rows)), lambda number: len(rows[number]), budget):
            tokens = tower.padded([rows[number] for number in group])
            found[group] = vectors(tower, tokens, self.reading).cpu().numpy()
        return found


def vectors(tower: Tower, tokens: Tokens, reading: Reading) -> Float[Tensor, "B E"]:
    """One vector of each text, in fp32."""
    states = tower.states(tokens)
    pooled = states[:, 0] if reading.pooling == CLS else _mean(states, tokens.mask)
    return F.normalize(pooled, dim=-1) if reading.normalised else pooled


def in_batch_loss(
    questions: Float[Tensor, "B E"], passages: Float[Tensor, "N E"], positives: Int[Tensor, "B"], scale: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of each question's own passage among all passages of the batch, summed over the questions.

    Source: Karpukhin et al. 2020, section 3.2 (in-batch negatives).

    Args:
        passages: the positives and the hard negatives of all questions, in any order.
        positives: which of them is each question's own.
        scale: of the scores; vectors of length one cannot tell passages apart without one (sentence-transformers: 20).
    """
    return F.cross_entropy(scale * questions @ passages.T, positives, reduction="sum")


def _mean(states: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B E"]:
    if mask is None:
        return states.mean(1)
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1)


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Without dropout and gradients, also in the middle of training."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)
