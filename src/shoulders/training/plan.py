"""Hyperparameters of a training run, and of the rivals of a scaffold: frozen, validated records."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from shoulders.answering.models import FID
from shoulders.errors import UnknownName, UsageError
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.low_rank import ALL_LINEAR
from shoulders.scaffolds.peft import FULL, LORA, PREFIX

DECAYS = ("none", "linear")
TOKENS, EXAMPLES = AVERAGES = ("tokens", "examples")
AUTO = "auto"
HIGHEST_RATE = 1e3  # far above it fp32 overflows in the first steps


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """Hyperparameters of a training run; the defaults are the paper's for prompt tuning (sections 2.2 and 4.1).

    Attributes:
        steps: optimizer steps.
        batch_size: examples a step, over all processes.
        learning_rate: peak learning rate.
        base_learning_rate: of what all inputs share under a generated part (`scaffold.base`); 0 does not train it.
        betas, eps, weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises linearly from 0.
        decay: "none" (prompts: Lester et al. 2021 and the paper) or "linear" to 0 at the last step (connectors).
        clip: maximum norm of the gradient; 0 for no clipping.
        average: what the loss of a step is the mean over: "tokens", all scored tokens alike, or "examples", of each
            example the mean over its scored tokens, so that a long answer weighs no more than a label.
        positions_at_once: positions of a micro-batch, prompt and padding included; bounds memory, not results. "auto":
            as many as fit the free memory (`runs.memory`).
        checkpointing: keep only the inputs of the frozen layers for the backward pass, which computes each layer again;
            layers that are streamed in (`backbone.offload`) are computed again in any case.
        evaluate_every: steps between scores on the development set; 0 for one at the end only.
        score_start: score before the first step too, so that what is kept is never worse than what training starts
            from; for what starts as something usable.
        save_every: steps between checkpoints; 0 for none.
        keep: number of checkpoints that are kept.
        first_pass: folder that stores the states of a recursion's first pass (`StateStore`); empty: they are computed
            in every step.
        contexts: folder that stores the keys and values of the texts before a prompt (`Contexts`; infix and suffix);
            empty: they are computed in every step.
        seed: of the order of examples, and of the initial parameters.
    """

    steps: int = 100_000
    batch_size: int = 32
    learning_rate: float = 0.3
    base_learning_rate: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    warmup: float = 0.005
    decay: str = "none"
    clip: float = 1.0
    average: str = TOKENS
    positions_at_once: int | Literal["auto"] = 2048
    checkpointing: bool = False
    evaluate_every: int = 0
    score_start: bool = False
    save_every: int = 0
    keep: int = 2
    first_pass: str = ""
    contexts: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "positions_at_once", "keep"):
            value = getattr(self, name)
            self._check(name, value == AUTO or value >= 1, "it must be at least 1")
        for name in ("evaluate_every", "save_every"):
            self._check(name, getattr(self, name) >= 0, "it cannot be negative")
        self._check(
            "learning_rate", 0 < self.learning_rate <= HIGHEST_RATE, f"it must be above 0, {HIGHEST_RATE:g} at most"
        )
        self._check("base_learning_rate", 0 <= self.base_learning_rate <= HIGHEST_RATE, f"from 0 to {HIGHEST_RATE:g}")
        self._check("betas", all(0 <= beta < 1 for beta in self.betas), "both lie from 0 to below 1")
        self._check("eps", 0 < self.eps < math.inf, "it must be above 0")
        for name in ("weight_decay", "clip"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "it cannot be negative")
        self._check("warmup", 0 <= self.warmup <= 1, "it is a share of the steps, between 0 and 1")
        for name, known in (("decay", DECAYS), ("average", AVERAGES)):
            if getattr(self, name) not in known:
                raise UnknownName(f"training.{name}", getattr(self, name), known)

    def _check(self, name: str, fits: bool, rule: str) -> None:
        if not fits:  # NaN never fits: it compares as false
            raise UsageError(f"training.{name} is {getattr(self, name)}: {rule}")

    def rate_factor(self, done: int) -> float:
        """Return the factor of the learning rate in the step after `done` steps."""
        rising = max(1, round(self.warmup * self.steps))
        factor = min(1.0, (done + 1) / rising)
        if self.decay == "linear" and done >= rising:
            factor *= max(0.0, (self.steps - done) / max(1, self.steps - rising))
        return factor


# Default learning rates. LoRA: Dettmers et al. 2023 (QLoRA), for models up to 13B. All weights: the middle of the range
# of Devlin et al. 2019, appendix A.3.
# FiD: Izacard and Grave 2021, section 4.
RATES = {LORA: 2e-4, PREFIX: DeepPrompt.usual_rate, FULL: 3e-5, FID: 1e-4}
RIVALS = tuple(RATES)
EPS = 1e-8  # of Adam, the default of transformers' Trainer


@dataclass(frozen=True, slots=True)
class RivalChoice:
    """What is trained instead of a scaffold, with an optimizer of its own; all other values of the recipe apply.

    Attributes:
        kind: "lora" (Hu et al. 2022), "prefix_tuning" (Li and Liang 2021; as long as the scaffold's prompt) or "full"
            (all weights), or "fid" (all of a sequence-to-sequence model that reads passages apart; `paper.fid`);
            empty: no rival.
        learning_rate: peak learning rate; 0 for the default of the kind (`RATES`).
        warmup, decay, weight_decay: instead of those of `training`.
        rank, alpha: of LoRA; the update is scaled by alpha / rank.
        targets: layers that LoRA adapts, by the end of their names; "all-linear": all but the output layer.
        length: for "fid", tokens of a question with one passage at most.
    """

    kind: str = ""
    learning_rate: float = 0.0
    warmup: float = 0.05
    decay: str = "linear"
    weight_decay: float = 0.0
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    length: int = 250

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
        self._check("length", self.length >= 8, "it must be at least 8, for a question and a passage; 250 is FiD's")
        self._check("alpha", 0 < self.alpha < math.inf, "it must be above 0")
        self._check("targets", bool(self.targets), f"name a layer; {ALL_LINEAR} takes all")

    def _check(self, name: str, fits: bool, rule: str) -> None:
        if not fits:
            raise UsageError(f"rival.{name} is {getattr(self, name)}: {rule}")

    def plan(self, training: TrainPlan) -> TrainPlan:
        """Return the training plan of a recipe with the optimizer of the rival."""
        return replace(
            training,
            learning_rate=self.learning_rate or RATES[self.kind],
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            eps=EPS,
        )
