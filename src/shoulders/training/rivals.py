"""Rivals of a scaffold: the usual ways of adapting a model, trained on the same examples.

Those that change weights train a copy of the backbone; the backbone itself stays as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import final

import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.adapters import ALL_LINEAR, FULL, LORA, PREFIX, add_lora, add_prefix
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UnknownName, UsageError
from shoulders.records import LMInput
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.prefix_tuning import PrefixTuning
from shoulders.training.plan import DECAYS, HIGHEST_RATE, TrainPlan

# LoRA: Dettmers et al. 2023 (QLoRA), for models up to 13B. A prefix without an MLP: of the order that Liu et al. 2022
# (P-Tuning v2) use. All weights: the middle of Devlin et al. 2019, appendix A.3.
RATES = {LORA: 2e-4, PREFIX: 1e-2, FULL: 3e-5}
RIVALS = tuple(RATES)
EPS = 1e-8  # of Adam in transformers' own trainer


@dataclass(frozen=True, slots=True)
class RivalChoice:
    """What is trained in the place of a scaffold; the recipe's other values hold for it, those of its optimizer do not.

    Attributes:
        kind: "lora" (Hu et al. 2022), "prefix_tuning" (Li and Liang 2021; as long as the scaffold's prompt) or "full"
            (all weights); empty: no rival.
        learning_rate: the peak rate; 0 for the usual one of its kind (`RATES`).
        warmup, decay, weight_decay: in the place of the recipe's `training`.
        rank, alpha: of LoRA; its update is multiplied by alpha / rank.
        targets: layers that LoRA adapts, by the end of their names; "all-linear": all but the output matrix.
    """

    kind: str = ""
    learning_rate: float = 0.0
    warmup: float = 0.05
    decay: str = "linear"
    weight_decay: float = 0.0
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        if self.kind and self.kind not in RIVALS:
            raise UnknownName("rival", self.kind, RIVALS)
        if not self.kind and any(getattr(self, item.name) != item.default for item in fields(self)):
            raise UsageError(f"rival values need a rival: --rival {'|'.join(RIVALS)}")
        if self.decay not in DECAYS:
            raise UnknownName("rival.decay", self.decay, DECAYS)
        self._check("learning_rate", 0 <= self.learning_rate <= HIGHEST_RATE, f"from 0 (the usual) to {HIGHEST_RATE:g}")
        self._check("warmup", 0 <= self.warmup <= 1, "it is a share of the steps, between 0 and 1")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "it cannot be negative")
        self._check("rank", self.rank >= 1, "it must be at least 1")
        self._check("alpha", 0 < self.alpha < math.inf, "it must be above 0")
        self._check("targets", bool(self.targets), f"name a layer; {ALL_LINEAR} takes all")

    def _check(self, name: str, fits: bool, rule: str) -> None:
        if not fits:
            raise UsageError(f"rival.{name} is {getattr(self, name)}: {rule}")

    def plan(self, training: TrainPlan) -> TrainPlan:
        """The recipe's plan with the rival's optimizer."""
        return replace(
            training,
            learning_rate=self.learning_rate or RATES[self.kind],
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            eps=EPS,
        )


@dataclass(frozen=True, slots=True)
class Rival:
    """A model to adapt, in the shape in which scaffolds are trained and measured.

    Attributes:
        lm: the model that is adapted, or the backbone itself if it does not change.
        scaffold: what it is read through.
        trained: its parameters are what moves.
        refresh: makes `lm` what `trained` is; called before each use.
        write: puts it into a folder, in the format of the library that made it.
    """

    lm: FrozenLM
    scaffold: Scaffold
    trained: nn.Module
    refresh: Callable[[], None]
    write: Callable[[Path], None]


def new_rival(choice: RivalChoice, lm: FrozenLM, room: int, seed: int) -> Rival:
    """A rival at the start of its training; without a prefix it says exactly what the backbone says.

    Args:
        lm: the backbone, of which a copy is trained.
        room: positions of the context left free for the prompt it is compared with, or taken by a prefix.

    Raises:
        SourceNotFound: PEFT is needed, and is not installed.
        UsageError: the model cannot be adapted so, a prefix has no length, or several processes train a copy that is
            not in fp32.
    """
    torch.manual_seed(seed)
    if choice.kind == PREFIX:
        return _prefix(lm, room)
    copy = lm.copied()
    if choice.kind == LORA:
        tuned = add_lora(copy, choice.rank, choice.alpha, choice.targets)
    else:
        tuned = copy.model.requires_grad_(True)
    trained = Weights(copy)

    def write(folder: Path) -> None:
        tuned.save_pretrained(str(folder))
        copy.tokenizer.save_pretrained(folder)

    return Rival(copy, Bare(room), trained, trained.refresh, write)


def _prefix(lm: FrozenLM, length: int) -> Rival:
    if length < 1:
        raise UsageError(
            "prefix tuning takes as many positions as the scaffold's prompt, and it has none: give it some"
        )
    scaffold = PrefixTuning(add_prefix(lm, length)).to(lm.device)
    return Rival(lm, scaffold, scaffold, lambda: None, lambda folder: scaffold.write(str(folder)))


@final
class Weights(nn.Module):
    """The weights of a model that train, in fp32.

    Where the model holds one in another type, a master copy is trained, and rounded into the model before it is used:
    updates that are small beside a weight are not lost. Source: Micikevicius et al. 2018, section 3.1.
    """

    def __init__(self, lm: FrozenLM) -> None:
        super().__init__()
        held = [weight for weight in lm.model.parameters() if weight.requires_grad]
        self.weights = nn.ParameterList(
            weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float()) for weight in held
        )
        self._rounded = [
            (master, weight) for master, weight in zip(self.weights, held, strict=True) if master is not weight
        ]
        if self._rounded and PartialState().num_processes > 1:
            raise UsageError("several processes fine-tune all weights in fp32 only: backbone.dtype=float32")
        for master, weight in self._rounded:
            weight.register_post_accumulate_grad_hook(_handing_to(master))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master copies into the model."""
        for master, weight in self._rounded:
            weight.copy_(master)

    def forward(self, lm: FrozenLM, given: LMInput) -> Float[Tensor, "B T D"]:
        """States of the model itself; as a module, so that processes can share the training."""
        return lm.states(given.embeds, given.mask)


def _handing_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds the gradient of a rounded weight to that of its master copy."""

    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        weight.grad = None

    return hand_over
