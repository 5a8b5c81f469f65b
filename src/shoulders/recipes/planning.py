"""What a recipe costs, counted on the meta device: shapes without values, so any scale fits into any machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForTextEncoding

from shoulders.backbone.devices import DTYPES
from shoulders.backbone.encoder import Encoder, FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import ContextFull, SourceNotFound, UsageError
from shoulders.recipes.build import shape_of
from shoulders.recipes.recipe import SELF, Recipe, ScaffoldChoice
from shoulders.recipes.shapes import config_named
from shoulders.records import LMInput, Tokens
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.soft_prompt import SoftPrompt

ADAM_BYTES = 16  # of a trained parameter: itself, its gradient and two moments, in fp32


@dataclass(frozen=True, slots=True)
class _NoTokenizer:
    """In the place of a tokenizer where no text is read: a model whose configuration states no context has no bound."""

    model_max_length: int = 10**9


@dataclass(frozen=True, slots=True)
class Cost:
    """What one recipe needs.

    Attributes:
        trained: trained parameters by part of the scaffold.
        backbone, encoder: frozen parameters.
        weights_bytes: of the frozen models.
        training_bytes: of the trained parameters with gradients and moments.
        activations_bytes: kept for the backward pass of one micro-batch.
        cache_bytes: keys and values of one answer.
        step: floating-point operations of one optimizer step.
        step_floor: of these, what the frozen model alone needs (forward, and backward to its input).
        answer: operations of one answer; `answer_bare` without a scaffold; `answer_prompt` with a plain prompt as long.
    """

    trained: dict[str, int]
    backbone: int
    encoder: int
    weights_bytes: int
    training_bytes: int
    activations_bytes: int
    cache_bytes: int
    step: int
    step_floor: int
    answer: int
    answer_bare: int
    answer_prompt: int


def cost(recipe: Recipe, input_length: int, output_length: int) -> Cost:
    """Count a recipe's parameters, bytes and operations for inputs and answers of a length.

    Raises:
        UsageError: a length below 1, or a model that is no causal language model.
        ContextFull: prompt, input and answer do not fit the context.
        SourceNotFound, HubUnreachable: the backbone's or encoder's configuration is not to be had.
    """
    if input_length < 1 or output_length < 1:
        raise UsageError(
            f"an input of {input_length} and an answer of {output_length} tokens: each has at least 1 (--input-length, "
            "--output-length)"
        )
    lm = meta_backbone(recipe.backbone.name, DTYPES.get(recipe.backbone.dtype, torch.bfloat16))
    scaffold = meta_scaffold(recipe.scaffold, lm)
    wanted = scaffold.length + input_length + output_length
    if wanted > lm.context:
        raise ContextFull(
            f"a prompt of {scaffold.length}, an input of {input_length} and an answer of {output_length}",
            wanted=wanted,
            room=lm.context,
            way_out="lower scaffold.length or --input-length",
        )
    sizes = _Sizes(lm, scaffold, input_length, output_length)
    prompt = SoftPrompt(torch.zeros(scaffold.length, lm.width, device="meta"))
    step, kept = sizes.step(scaffold)
    encoder = 0 if scaffold.encoder is None or scaffold.encoder is lm else _count(scaffold.encoder.model)  # type: ignore[attr-defined]
    trained = parts(scaffold)
    rows = max(1, recipe.training.positions_at_once // (scaffold.length + input_length + output_length))
    bytes_each = torch.empty(0, dtype=lm.dtype).element_size()
    return Cost(
        trained=trained,
        backbone=_count(lm.model),
        encoder=encoder,
        weights_bytes=(_count(lm.model) + encoder) * bytes_each,
        training_bytes=sum(trained.values()) * ADAM_BYTES,
        activations_bytes=kept * min(rows, recipe.training.batch_size),
        cache_bytes=sizes.cache_bytes(scaffold),
        step=step * recipe.training.batch_size,
        step_floor=sizes.step(prompt)[0] * recipe.training.batch_size,
        answer=sizes.answer(scaffold),
        answer_bare=sizes.answer(Bare()),
        answer_prompt=sizes.answer(prompt),
    )


def meta_backbone(name: str, dtype: torch.dtype) -> FrozenLM:
    """A backbone of the right shape without values."""
    config = config_named(name)
    if type(config) not in AutoModelForCausalLM._model_mapping:  # noqa: SLF001 (what from_config asks, too)
        raise SourceNotFound(
            f"{name!r} is a {config.model_type} model, not a causal language model: name one, backbone.name=..."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return FrozenLM(model, _NoTokenizer(), name)  # type: ignore[arg-type] (no text is read)


def meta_encoder(name: str, lm: FrozenLM) -> Encoder:
    """An encoder of the right shape without values."""
    if name == SELF:
        return lm
    with torch.device("meta"):
        model = AutoModelForTextEncoding.from_config(config_named(name), dtype=lm.dtype)
    return FrozenEncoder(model, None, name)  # type: ignore[arg-type]


def meta_scaffold(choice: ScaffoldChoice, lm: FrozenLM) -> Scaffold:
    """A scaffold of the right shape without values."""
    if choice.kind == "bare":
        return Bare()
    with torch.device("meta"):
        if choice.kind == "soft_prompt":
            return SoftPrompt(torch.zeros(choice.length, lm.width), choice.placement)
        encoder = meta_encoder(choice.encoder, lm)
        return InputPrompt(encoder, lm.width, shape_of(choice), placement=choice.placement)


def parts(scaffold: Scaffold) -> dict[str, int]:
    """Trained parameters by part."""
    found: dict[str, int] = {}
    for name, weight in scaffold.named_parameters():
        part = name.split(".")[0]
        found[part] = found.get(part, 0) + weight.numel()
    return found


@dataclass(frozen=True, slots=True)
class _Sizes:
    """One row of the recipe's lengths, to be run through a scaffold and counted."""

    lm: FrozenLM
    scaffold: Scaffold
    input_length: int
    output_length: int

    def step(self, scaffold: Scaffold) -> tuple[int, int]:
        """Operations of one row's step (forward, scored logits, backward) and the bytes kept for its backward pass."""
        length = self.input_length + self.output_length - 1
        with _kept_bytes() as kept:
            work = _counted(lambda: self._step(scaffold, length))
        return work, kept()

    def _step(self, scaffold: Scaffold, length: int) -> None:
        states = scaffold.states(self.lm, self._given(length, scaffold))
        self.lm.logits(states[:, -self.output_length :]).float().sum().backward()

    @torch.no_grad()
    def answer(self, scaffold: Scaffold) -> int:
        """Operations of one answer: the input is read once, then token by token."""
        scaffold.requires_grad_(False)
        memory = self.lm.memory(scaffold.passes)

        def read() -> None:
            states = scaffold.states(self.lm, self._given(self.input_length, scaffold), memory)
            self.lm.logits(states[:, -1:])

        def next_token() -> None:
            step = self._given(1, scaffold).continued(self._embeds(1))
            self.lm.logits(scaffold.states(self.lm, step, memory))

        return _counted(read) + (self.output_length - 1) * _counted(next_token)

    def cache_bytes(self, scaffold: Scaffold) -> int:
        """Keys and values after an answer's last token."""
        memory = self.lm.memory(scaffold.passes)
        length = self.input_length + self.output_length - 1
        with torch.no_grad():
            scaffold.states(self.lm, self._given(length, scaffold), memory)
        layers: list[Any] = [layer for one in memory.passes for layer in one.cache.layers]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None)

    def _embeds(self, length: int) -> Tensor:
        return torch.empty(1, length, self.lm.width, dtype=self.lm.dtype, device="meta")

    def _given(self, length: int, scaffold: Scaffold) -> LMInput:
        slot = {"prefix": 0, "infix": 0, "suffix": min(length, self.input_length)}[scaffold.placement.value]
        source = None
        if scaffold.encoder is not None:
            read = min(self.input_length, scaffold.encoder.context - scaffold.source_room)
            ids = torch.zeros(1, read, dtype=torch.long, device="meta")
            source = Tokens(ids)
        return LMInput(self._embeds(length), None, (slot,), source)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _counted(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@contextmanager
def _kept_bytes() -> Iterator[Callable[[], int]]:
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once, parameters left out."""
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # noqa: SLF001 (its identity; held, so that it is not given away)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in kept.values())
