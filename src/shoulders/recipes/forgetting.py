"""What a training made the language model forget: perplexity on held-out text before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoulders.backbone.frozen import FrozenLM
from shoulders.evaluation.perplexity import Perplexity, perplexity
from shoulders.scaffolds.base import Bare, Scaffold


@dataclass(frozen=True, slots=True)
class Forgetting:
    """A model before and after.

    Attributes:
        before: of the backbone as it was loaded.
        after: of the model without a scaffold once the method has been used: of a rival, the weights that moved.
        checksums: over every bit of the two models.
        attached: of the text read through the scaffold, which nobody has to do; None for a rival, and for an
            input-dependent prompt, which would read what it is to predict.
    """

    before: Perplexity
    after: Perplexity
    checksums: tuple[str, str]
    attached: Perplexity | None = None

    @property
    def unchanged(self) -> bool:
        """Whether no bit of the model moved."""
        return self.checksums[0] == self.checksums[1]

    @property
    def ratio(self) -> float:
        """Perplexity after over before: 1 where nothing is forgotten."""
        return self.after.perplexity / self.before.perplexity

    def as_json(self) -> dict[str, Any]:
        """The numbers, as results are kept."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "attached": self.attached and self.attached.as_json(),
            "ratio": self.ratio,
            "unchanged": self.unchanged,
            "checksums": list(self.checksums),
        }


def forgotten_by_scaffold(lm: FrozenLM, scaffold: Scaffold, sequences: Sequence[Sequence[int]]) -> Forgetting:
    """Of a scaffold: the model is measured, used through the scaffold, and measured again without it."""
    checksum, before = lm.checksum(), perplexity(lm, Bare(), sequences)
    attached = perplexity(lm, scaffold, sequences) if scaffold.encoder is None else None
    after = perplexity(lm, Bare(), sequences)
    return Forgetting(before, after, (checksum, lm.checksum()), attached)


def forgotten_by_rival(lm: FrozenLM, rival: FrozenLM, sequences: Sequence[Sequence[int]]) -> Forgetting:
    """Of a rival, which is a copy of the backbone with other weights."""
    before, after = (perplexity(model, Bare(), sequences) for model in (lm, rival))
    return Forgetting(before, after, (lm.checksum(), rival.checksum()))
