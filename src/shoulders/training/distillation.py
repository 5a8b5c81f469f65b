"""Distillation: a scaffold learns what the frozen model answers with evidence that it does not read itself.

The teacher is the frozen model with the evidence before the question, the student the frozen model under the scaffold
without it. The teacher's distributions at the positions of the answer are computed once and kept on disk.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import SCORED_AT_ONCE, FrozenLM, cross_entropy
from shoulders.engine.batches import EncodedQuestion, by_length, encode, training_batch
from shoulders.errors import UsageError
from shoulders.evidence.base import Evidence, EvidenceConfig
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import IGNORE, Question
from shoulders.scaffolds.base import BARE, Scaffold
from shoulders.store.cache import RowCache, key_of_ids

FORMAT = 1
POSITIONS_AT_ONCE = 4096  # of one batch that the teacher reads, padding included


@dataclass(frozen=True, slots=True)
class TeacherChoice:
    """Values of a recipe's `teacher`; there is one if `teacher.evidence.kind` names what it reads.

    Attributes:
        evidence: config of the evidence that the teacher reads, and the student does not.
        weight: share of the distillation in the loss, beside the answers' cross-entropy; 1 for distillation alone.
        top: number of the teacher's most likely tokens that are kept of each position; the others count together.
        input: maximum tokens of evidence and question.
        scaffold: run, folder or hub name of a scaffold that the teacher reads under; "bare" for none.
        store: folder of the kept distributions; empty for one in the cache folder.
    """

    evidence: EvidenceConfig = field(default_factory=EvidenceChoice)
    weight: float = 1.0
    top: int = 64
    input: int = 1024
    scaffold: str = BARE
    store: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise UsageError(f"teacher.weight is {self.weight}: it is a share of the loss, above 0 and at most 1")
        for name in ("top", "input"):
            if getattr(self, name) < 1:
                raise UsageError(f"teacher.{name} is {getattr(self, name)}: it must be at least 1")


class TopTokens(NamedTuple):
    """The most likely next tokens at some positions, with their log-probabilities, most likely first."""

    ids: Int[Tensor, "N K"]
    log_probs: Float[Tensor, "N K"]


@final
class Teacher:
    """The frozen model with evidence before the question, as the teacher of a scaffold.

    Distributions are kept under a key of all token ids that the teacher reads, apart for each backbone, type and
    scaffold. Their files are as safe as those of `StateStore`: rows may be missing, but none is wrong, and several
    processes may use one folder.

    Args:
        lm: the frozen model.
        scaffold: that it reads under; `Bare()` for none.
        evidence: that it reads.
        choice: weight and number of tokens.
        folder: of the kept distributions; made if there is none.

    Attributes:
        computed: number of rows that this process had to compute.

    Raises:
        SaveFailed: the folder cannot be written, now or when rows are added.
    """

    def __init__(
        self, lm: FrozenLM, scaffold: Scaffold, evidence: Evidence, choice: TeacherChoice, folder: Path
    ) -> None:
        self.lm, self.scaffold, self.evidence, self.weight = (
            lm,
            scaffold.eval().requires_grad_(False),
            evidence,
            choice.weight,
        )
        self.top = min(choice.top, lm.vocabulary)
        self.computed = 0
        about: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": lm.fingerprint(),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "scaffold": identity(scaffold),
            "top": self.top,
        }
        digest = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
        self._kept = RowCache(folder / f"teacher-{digest}", about, what="distributions", option="teacher.store")

    def row(self, question: Question, target: Sequence[int]) -> EncodedQuestion | None:
        """Return a question with its evidence as the teacher reads it; None if it does not fit the context."""
        row = replace(encode(question, self.lm), target=list(target))
        return row if row.length + self.scaffold.length <= self.lm.context else None

    def distributions(self, rows: Sequence[EncodedQuestion]) -> TopTokens:
        """Return the teacher's distribution at each position of the rows' answers, one row after the other."""
        keys = [key_of_ids([len(row.ids), row.question_at, *row.ids, *row.target]) for row in rows]
        found = {key: self._unpacked(kept) for key, kept in self._kept.read(keys).items()}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        found |= self._fresh(missing)
        ids, log_probs = zip(*(found[key] for key in keys), strict=True)
        return TopTokens(torch.cat(ids).to(self.lm.device), torch.cat(log_probs).to(self.lm.device))

    def losses(
        self, states: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"], rows: Sequence[EncodedQuestion]
    ) -> Float[Tensor, "B"]:
        """Return the loss of each row, summed over its answer: distillation and cross-entropy, mixed by `weight`."""
        taught = self.distributions([_as_taught(row) for row in rows])
        return self.lm.row_losses(states, labels, partial(mixed_losses, self.weight), *taught)

    @torch.no_grad()
    def _fresh(self, rows: Mapping[bytes, EncodedQuestion]) -> dict[bytes, TopTokens]:
        """Compute distributions that are not kept; each batch is on disk before the next one runs."""
        found: dict[bytes, TopTokens] = {}
        cost = self.scaffold.length
        for part in by_length([*rows.items()], lambda item: item[1].length + cost, POSITIONS_AT_ONCE):
            batch = training_batch([row for _, row in part], self.lm, self.scaffold)
            states = self.scaffold.states(self.lm, batch.given)[batch.labels != IGNORE]
            ids, log_probs = zip(*(self._top(some) for some in states.split(SCORED_AT_ONCE)), strict=True)
            sizes = [len(row.target) for _, row in part]
            split = zip(torch.cat(ids).split(sizes), torch.cat(log_probs).split(sizes), strict=True)
            new = {key: TopTokens(*one) for (key, _), one in zip(part, split, strict=True)}
            self._kept.append({key: _packed(one) for key, one in new.items()})
            self.computed += len(new)
            found |= new
        return found

    def _top(self, states: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        found = self.lm.logits(states).float().log_softmax(-1).topk(self.top)
        return found.indices.cpu(), found.values.cpu()

    def _unpacked(self, kept: NDArray[np.uint8]) -> TopTokens:
        flat = torch.from_numpy(kept.copy()).view(torch.int32).view(2, -1, self.top)
        return TopTokens(flat[0].long(), flat[1].view(torch.float32))


def _packed(one: TopTokens) -> NDArray[np.uint8]:
    return torch.stack([one.ids.int(), one.log_probs.contiguous().view(torch.int32)]).numpy().view(np.uint8).reshape(-1)


def _as_taught(row: EncodedQuestion) -> EncodedQuestion:
    assert row.taught is not None
    return row.taught


def mixed_losses(
    weight: float,
    logits: Float[Tensor, "N V"],
    labels: Int[Tensor, "N"],
    ids: Int[Tensor, "N K"],
    log_probs: Float[Tensor, "N K"],
) -> Float[Tensor, "N"]:
    """Return the loss of each position: `weight` of the divergence from the teacher, the rest cross-entropy.

    The divergence is KL(teacher, student) over the teacher's most likely tokens and one class of all others: at most
    that over all tokens, equal to it where all are kept, and 0 where the student is the teacher.
    """
    student = logits.log_softmax(-1).gather(1, ids)
    kept = (log_probs.exp() * (log_probs - student)).sum(1)
    teacher_rest, student_rest = _rest(log_probs), _rest(student)
    divergence = kept + torch.xlogy(teacher_rest, teacher_rest) - teacher_rest * student_rest.clamp_min(TINY).log()
    return weight * divergence + (1 - weight) * cross_entropy(logits, labels) if weight < 1 else divergence


TINY = 1e-7  # least probability of all other tokens; fp32 sums of probabilities are exact to about this


def _rest(log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
    """Return the probability of all other tokens."""
    return (1 - log_probs.exp().sum(1)).clamp_min(0.0)
