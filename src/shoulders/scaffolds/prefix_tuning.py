"""PEFT's prefix tuning as a scaffold: the model stays as it is, so it stands around it like any other."""

from collections.abc import Mapping
from typing import Any, Self, final

from shoulders.backbone.adapters import add_prefix
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory, PassMemory
from shoulders.records import LMInput
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.program import Pass, Program


@final
class PrefixTuning(Scaffold, kind="prefix_tuning"):
    """Trained keys and values in every layer, before the text. Source: Li and Liang 2021, without their MLP.

    Args:
        adapted: PEFT's model around the backbone (`add_prefix`, `read_adapter`); it is used and never a child.
    """

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
