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
        attached: of the text read through the scaffold, which nobody has to do; None where there is none, and for an
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


def forgetting(lm: FrozenLM, adapted: FrozenLM, scaffold: Scaffold, sequences: Sequence[Sequence[int]]) -> Forgetting:
    """Measure a backbone, use the method, and measure the model that is left.

    Args:
        adapted: a rival's copy of the backbone; the backbone itself where nothing changes it.
        scaffold: what it is read through.
    """
    checksum, before = lm.checksum(), perplexity(lm, Bare(), sequences)
    readable = scaffold.encoder is None and not isinstance(scaffold, Bare)
    attached = perplexity(adapted, scaffold, sequences) if readable else None
    after = perplexity(adapted, Bare(), sequences)
    return Forgetting(before, after, (checksum, adapted.checksum()), attached)
