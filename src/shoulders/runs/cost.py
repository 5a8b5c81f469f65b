"""The cost of a recipe in operations and bytes, counted on the meta device, so that models of any size fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import _engine_run_backward, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from shoulders.backbone.caches import Memory
from shoulders.backbone.frozen import UNLIMITED, FrozenLM
from shoulders.backbone.shapes import meta_backbone
from shoulders.backbone.sources import DTYPES
from shoulders.engine.precomputed import check_contexts, context_bytes
from shoulders.errors import ContextFull, UsageError
from shoulders.records import ScaffoldInput, Tokens
from shoulders.runs.recipe import Recipe
from shoulders.scaffolds.base import KINDS, Bare, Scaffold, ScaffoldConfig
from shoulders.scaffolds.soft_prompt import SoftPrompt


def count_flops(run: Callable[[], None]) -> int:
    """Return the number of floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@contextmanager
def saved_bytes(weights: Sequence[Tensor]) -> Iterator[Callable[[], int]]:
    """Yield a function: the bytes that autograd keeps for the backward pass, without the weights."""
    known = {weight.untyped_storage()._cdata for weight in weights}  # noqa: SLF001 (a storage's identity)
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:  # noqa: SLF001
            kept[storage._cdata] = storage  # noqa: SLF001 (held, so that its identity is not given away)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), RealDeviceMemory():
        yield lambda: sum(storage.nbytes() for storage in kept.values())


uncounted: ContextVar[bool] = ContextVar("uncounted", default=False)  # products that no memory is held for


@contextmanager
def _uncounted() -> Iterator[None]:
    token = uncounted.set(True)
    try:
        yield
    finally:
        uncounted.reset(token)


class RealDeviceMemory(TorchFunctionMode):
    """Makes a step on the meta device keep the same tensors as on a real device.

    On the meta device PyTorch uses its plain attention kernel, which keeps the attention matrices: most of the memory
    at 1,000 tokens. And transformers needs a cache there (`passes.read`), whose first extension copies keys and values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # layers that are computed again in it need this mode, too
            with RealDeviceMemory():  # the public functions would turn it off again
                return _engine_run_backward(
                    (args[0],),
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        if func is F.scaled_dot_product_attention and args[0].is_meta and any(one.requires_grad for one in args[:3]):
            return _FusedAttention.apply(*args[:3], args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        if func is torch.cat and len(args[0]) == 2 and args[0][0].is_meta and not args[0][0].numel():
            return args[0][1]
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Shapes, operations and kept tensors of fused attention: inputs, output, and one number per row of the softmax.

    The operations are those of plain attention: the recomputation of scores, with which a fused kernel saves memory, is
    not counted.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads, length = query.shape[:-1]
        with _uncounted():
            scores = query @ _repeated(key, heads).transpose(-2, -1)
            mixed = scores @ _repeated(value, heads)
            del scores
        # Kernels write the heads of a position side by side, so that putting them together later is no copy.
        mixed = mixed.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, mixed, query.new_empty(rows, heads, length, dtype=torch.float32))
        return mixed

    @staticmethod
    @once_differentiable
    # The decorator hides the argument names that the base class declares.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (mixed,) = gradients
        query, key, value, *_ = ctx.saved_tensors
        for_query, for_key, for_value = ctx.needs_input_grad[:3]
        with _uncounted():
            heads = query.shape[1]
            shares = query.new_empty(*query.shape[:-1], key.shape[-2])
            if for_query or for_key:
                _ = mixed @ _repeated(value, heads).transpose(-2, -1)
            if for_query:
                _ = shares @ _repeated(key, heads)
            if for_key:
                _ = shares.transpose(-2, -1) @ query
            if for_value:
                _ = shares.transpose(-2, -1) @ mixed
        needed = zip((query, key, value), ctx.needs_input_grad, strict=False)
        return (*(torch.empty_like(one) if wanted else None for one, wanted in needed), None)


def _repeated(grouped: Tensor, heads: int) -> Tensor:
    """Return keys or values repeated for each query head."""
    return grouped.repeat_interleave(heads // grouped.shape[1], 1)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a recipe; memory of a training step: `runs.memory`.

    Attributes:
        trained: trained parameters by part of the scaffold.
        backbone, encoder: frozen parameters.
        cache_bytes: keys and values of one answer.
        context_bytes: keys and values of one input, if the recipe stores them on disk (`training.contexts`); else 0.
        step: floating-point operations of one optimizer step.
        step_floor: operations of the frozen model alone (forward, and backward to its input).
        answer: operations of one answer; `answer_bare`: without a scaffold; `answer_prompt`: with a soft prompt of
            the same length.
    """

    trained: dict[str, int]
    backbone: int
    encoder: int
    cache_bytes: int
    context_bytes: int
    step: int
    step_floor: int
    answer: int
    answer_bare: int
    answer_prompt: int


def cost(recipe: Recipe, input_length: int, output_length: int) -> Cost:
    """Return a recipe's parameters, bytes and operations for inputs and answers of given lengths.

    Raises:
        UsageError: a length is below 1, the model is no causal language model, or contexts cannot be stored.
        ContextFull: prompt, input and answer do not fit the context.
        SourceNotFound, HubUnreachable: the configuration of the backbone or encoder cannot be loaded.
    """
    if input_length < 1 or output_length < 1:
        raise UsageError(
            f"the input has {input_length} and the answer {output_length} tokens: each must be at least 1 "
            "(--input-length, --output-length)"
        )
    lm = meta_backbone(
        recipe.backbone.name, DTYPES.get(recipe.backbone.dtype, torch.bfloat16), recipe.backbone.attention
    )
    scaffold = meta_scaffold(recipe.scaffold, lm)
    wanted = scaffold.length + input_length + output_length
    if wanted > lm.context:
        raise ContextFull(
            f"a prompt of {scaffold.length}, an input of {input_length} and an answer of {output_length}",
            wanted=wanted,
            room=lm.context,
            way_out="lower scaffold.length or --input-length",
        )
    sizes = Sizes(lm, scaffold, input_length, output_length)
    prompt = SoftPrompt(torch.zeros(scaffold.length, lm.width, device="meta"))
    step, _ = sizes.step(scaffold)
    encoder = 0 if scaffold.encoder is None or scaffold.encoder is lm else _count(scaffold.encoder.model)  # type: ignore[attr-defined]
    return Cost(
        trained=parts(scaffold),
        backbone=_count(lm.model),
        encoder=encoder,
        cache_bytes=sizes.cache_bytes(scaffold),
        context_bytes=_context_bytes(recipe, lm, scaffold, input_length),
        step=step * recipe.training.batch_size,
        step_floor=sizes.step(prompt)[0] * recipe.training.batch_size,
        answer=sizes.answer(scaffold),
        answer_bare=sizes.answer(Bare()),
        answer_prompt=sizes.answer(prompt),
    )


def _context_bytes(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, input_length: int) -> int:
    if not recipe.training.contexts:
        return 0
    check_contexts(scaffold)
    return context_bytes(lm, input_length)


def meta_scaffold(config: ScaffoldConfig, lm: FrozenLM) -> Scaffold:
    """Return a scaffold on the meta device: shapes without values."""
    with torch.device("meta"):
        return KINDS[config.kind].new(config, lm)


def parts(scaffold: Scaffold) -> dict[str, int]:
    """Return the number of trained parameters by part of the scaffold."""
    found: dict[str, int] = {}
    for name, weight in scaffold.named_parameters():
        part = name.split(".")[0]
        found[part] = found.get(part, 0) + weight.numel()
    return found


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts operations and bytes of rows of given lengths through a scaffold; one row, unless said otherwise."""

    lm: FrozenLM
    scaffold: Scaffold
    input_length: int
    output_length: int
    rows: int = 1

    def step(self, scaffold: Scaffold) -> tuple[int, int]:
        """Return operations of a training step of one row (forward, scored logits, backward), and bytes it keeps."""
        length = self.input_length + self.output_length - 1
        with saved_bytes(self.weights(scaffold)) as kept:
            work = count_flops(lambda: self._step(scaffold, length))
        return work, kept()

    def _step(self, scaffold: Scaffold, length: int) -> None:
        given = self.given(length, scaffold)
        if not any(
            weight.numel() for weight in scaffold.parameters()
        ):  # a prompt of length 0: gradients go to the text
            given.embeds.requires_grad_()
        states = scaffold.states(self.lm, given)
        self.lm.logits(states[:, -self.output_length :]).float().sum().backward()

    @torch.no_grad()
    def answer(self, scaffold: Scaffold) -> int:
        """Return operations of one answer: the input is read once, then tokens one by one."""
        scaffold.requires_grad_(False)
        memory = Memory()

        def read() -> None:
            states = scaffold.states(self.lm, self.given(self.input_length, scaffold), memory)
            self.lm.logits(states[:, -1:])

        def next_token() -> None:
            step = self.given(1, scaffold).continued(self._embeds(1))
            self.lm.logits(scaffold.states(self.lm, step, memory))

        return count_flops(read) + (self.output_length - 1) * count_flops(next_token)

    def cache_bytes(self, scaffold: Scaffold) -> int:
        """Return bytes of the keys and values after the last token of an answer."""
        memory = Memory()
        length = self.input_length + self.output_length - 1
        with torch.no_grad():
            scaffold.states(self.lm, self.given(length, scaffold), memory)
        layers: list[Any] = [layer for one in memory for layer in one.cache_for(self.lm.config).layers]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None)

    def weights(self, scaffold: Scaffold) -> list[Tensor]:
        """Return all weights and buffers of the models."""
        models = [self.lm.model, scaffold, getattr(scaffold.encoder, "model", self.lm.model)]
        return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]

    def _embeds(self, length: int) -> Tensor:
        return torch.empty(self.rows, length, self.lm.width, dtype=self.lm.dtype, device=self.lm.device)

    def given(self, length: int, scaffold: Scaffold) -> ScaffoldInput:
        """Return the input of a scaffold, without values."""
        slot = {"prefix": 0, "infix": 0, "suffix": min(length, self.input_length)}[scaffold.placement.value]
        source = None
        if scaffold.encoder is not None:
            # Cut as in `source_tokens`; the language model as its own encoder is limited by its context only.
            longest = UNLIMITED if scaffold.encoder is self.lm else scaffold.encoder.tokenizer.model_max_length  # type: ignore[attr-defined]
            read = min(self.input_length, scaffold.encoder.context - scaffold.source_room, longest)
            ids = torch.zeros(self.rows, read, dtype=torch.long, device=self.lm.device)
            source = Tokens(ids)
        return ScaffoldInput(self._embeds(length), None, (slot,) * self.rows, source)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
