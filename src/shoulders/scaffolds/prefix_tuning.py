"""PEFT's prefix tuning as a scaffold: the model stays as it is, so it stands around it like any other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

from shoulders.backbone.adapters import add_prefix
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory, PassMemory
from shoulders.errors import UsageError
from shoulders.records import LMInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.program import Pass, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTuningConfig(ScaffoldConfig):
    """What a recipe says of a prefix in every layer.

    Attributes:
        length: positions of the prefix.
    """

    kind: str = field(default="prefix_tuning", init=False)
    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"scaffold.length is {self.length}: a prefix takes at least 1 position, and 20 are usual")

    @property
    def taken(self) -> int:
        """The positions of the prefix."""
        return self.length


@final
class PrefixTuning(Scaffold, kind="prefix_tuning"):
    """Trained keys and values in every layer, before the text. Source: Li and Liang 2021, without their MLP.

    Args:
        adapted: PEFT's model around the backbone (`add_prefix`, `read_adapter`); it is used and never a child.
    """

    label = "prefix tuning"
    Config = PrefixTuningConfig

    def __init__(self, adapted: Any) -> None:
        super().__init__()
        self.prefix = adapted.prompt_encoder[adapted.active_adapter]
        self.write = adapted.save_pretrained  # in PEFT's own format
        self._keys_and_values = adapted.get_prompt

    @property
    def length(self) -> int:
        """Positions of the prefix."""
        return self.prefix.embedding.num_embeddings

    def program(self, given: LMInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over a text that finds the prefix in every layer's memory."""
        one = PassMemory() if memory is None else memory.single
        if not one.seen:
            one.cache, one.seen = self._keys_and_values(given.embeds.shape[0]), self.length
        return (yield Pass(given.embeds, given.mask, one))

    def description(self) -> dict[str, Any]:
        """The length."""
        return {"length": self.length}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Another one of that length."""
        return cls(add_prefix(lm, description["length"]))

    @classmethod
    def new(cls, config: PrefixTuningConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """A prefix as PEFT starts one."""
        return cls(add_prefix(lm, config.length))
