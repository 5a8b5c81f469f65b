"""Peak memory of a training step, from a step on tensors without values: what is alive at the same time is added up."""

import gc
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import get_max_memory
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from shoulders.backbone.checkpointing import checkpointing
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import layers_of
from shoulders.backbone.shapes import meta_backbone
from shoulders.backbone.sources import pick_dtype
from shoulders.errors import UsageError
from shoulders.runs.cost import RealDeviceMemory, Sizes, meta_scaffold, uncounted
from shoulders.runs.recipe import BackboneChoice, Recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.training.plan import AUTO

CPU = "cpu"
KEPT_BYTES = 12  # per trained parameter: value and Adam's two moments in fp32; its gradient is alive in the step
RESERVED = 0.9  # share of a device's memory that is planned with: allocators do not fill it without gaps
ON_CPU = 0.6  # the same on a CPU: glibc keeps freed memory between what is in use, half as much again as is used


class _Alive(TorchDispatchMode):
    """Follows the bytes of all tensors that are made and freed meanwhile.

    Args:
        known: tensors that were there before.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not uncounted.get():
            tree_map_only(Tensor, self._note, found)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # PyTorch keeps this object as long as the memory
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self._known[id(storage)] = None
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, id(storage), size)

    def _freed(self, number: int, size: int) -> None:
        self.now -= size
        del self._known[number]


def planned_backbone(choice: BackboneChoice) -> FrozenLM:
    """Return a backbone without values: in its type, quantised, with the attention of its device.

    Raises:
        UnknownName: there is no such scheme.
        SourceNotFound, HubUnreachable: its configuration cannot be loaded.
    """
    place = torch.device(CPU if choice.device == CPU else "meta")  # any accelerator stands for another
    kernel = CPU if place.type == CPU and choice.attention == "auto" else choice.attention
    return meta_backbone(choice.name, pick_dtype(choice.dtype, place), kernel, choice.quantize)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters, and of its buffers."""
    return sum(one.nbytes for one in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of a training step of one micro-batch.

    Attributes:
        weights: of frozen models that are held on the device.
        trained: of trained parameters and the optimizer's moments.
        step: of all else at its peak: activations, gradients, logits.
    """

    weights: int
    trained: int
    step: int

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return self.weights + self.trained + self.step


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe on models without values, to measure steps of any size on.

    Attributes:
        recipe: the recipe.
        lm, scaffold: without values.
        shards: number of processes that share the layers' weights (`backbone.parallel`).
    """

    recipe: Recipe
    lm: FrozenLM
    scaffold: Scaffold
    shards: int = 1

    @classmethod
    def of(cls, recipe: Recipe, shards: int = 1) -> "Planned":
        """Return a recipe's models without values."""
        lm = planned_backbone(recipe.backbone)
        return cls(recipe, lm, meta_scaffold(recipe.scaffold, lm), shards)

    @property
    def streamed(self) -> bool:
        """Whether layers are brought in when they run."""
        return bool(self.recipe.backbone.offload) or "disk" in self.recipe.backbone.device_map

    @property
    def kept(self) -> str:
        """How the weights are kept, in words."""
        choice = self.recipe.backbone
        scheme = f"layers as {choice.quantize}" if choice.quantize else ""
        where = "layers streamed in" if self.streamed else f"layers in {self.shards} shards" * (self.shards > 1)
        again = "layers computed again in the backward pass" * (self.recipe.training.checkpointing or self.streamed)
        return ", ".join(filter(None, [str(self.lm.dtype).removeprefix("torch."), scheme, where, again]))

    def rows(self, input_length: int, output_length: int) -> int:
        """Return the number of examples of given lengths in a micro-batch of the recipe."""
        length, plan = self.scaffold.length + input_length + output_length, self.recipe.training
        at_once = plan.batch_size * length if plan.positions_at_once == AUTO else int(plan.positions_at_once)
        return min(max(1, at_once // length), plan.batch_size)

    @property
    def weights(self) -> int:
        """Bytes of frozen weights that the device holds at a time."""
        encoder = self.scaffold.encoder
        other = 0 if encoder is None or encoder is self.lm else held_bytes(encoder.model)  # type: ignore[attr-defined]
        whole = held_bytes(self.lm.model)
        layers = [held_bytes(layer) for layer in layers_of(self.lm.model, self.lm.config)]
        if self.streamed:
            return other + whole - sum(layers) + max(layers)
        if self.shards > 1:  # each layer is gathered when it runs
            return other + whole - sum(layers) + sum(layers) // self.shards + max(layers)
        return other + whole

    def memory(self, rows: int, input_length: int, output_length: int) -> StepMemory:
        """Return the bytes of a step of one micro-batch of `rows` examples of given lengths."""
        gc.collect()  # what an earlier step left behind is freed at a time that is not this one's
        sizes = Sizes(self.lm, self.scaffold, input_length, output_length, rows)
        on = self.recipe.training.checkpointing or self.streamed
        with checkpointing(on), RealDeviceMemory(), _Alive(sizes.weights(self.scaffold)) as alive:
            _step(sizes)
        trained = sum(weight.numel() for weight in self.scaffold.parameters())
        return StepMemory(self.weights, trained * KEPT_BYTES, alive.peak)

    def most_rows(self, room: int, input_length: int, output_length: int) -> int:
        """Return the largest number of examples in a micro-batch that fits `room` bytes; 0 if none does.

        What a step needs grows linearly with them.
        """
        one, two = (self.memory(rows, input_length, output_length).peak for rows in (1, 2))
        return 0 if one > room else 1 + (room - one) // max(1, two - one)


def _step(sizes: Sizes) -> None:
    """Run one step: forward, the loss of the scored positions, backward."""
    lm, length = sizes.lm, sizes.input_length + sizes.output_length - 1
    given = sizes.given(length, sizes.scaffold)
    states = sizes.scaffold.states(lm, given)[:, -sizes.output_length :].reshape(-1, lm.width)
    labels = torch.zeros(len(states), dtype=torch.long, device=states.device)
    F.cross_entropy(lm.logits(states).float(), labels, reduction="sum").backward()
    sizes.scaffold.zero_grad()


def positions_at_once(recipe: Recipe, lm: FrozenLM) -> int:
    """Return the positions of a micro-batch of a recipe; for "auto" as many as fit the free memory, and warn how many.

    Examples are as long as the recipe lets them be.

    Raises:
        UsageError: not even one example fits.
    """
    chosen = recipe.training.positions_at_once
    if chosen != AUTO:
        return int(chosen)
    planned = Planned.of(recipe)
    output = 1 if recipe.text.source else recipe.suite.lengths.target
    longest = recipe.text.length if recipe.text.source else recipe.suite.lengths.input
    longest = min(longest, lm.context - planned.scaffold.length - output)
    free, share = free_bytes(lm.device), ON_CPU if lm.device.type == CPU else RESERVED
    rows = planned.most_rows(int(share * free) + planned.weights, longest, output)  # the weights are there already
    about = f"examples of {longest} and {output} tokens, {share:.0%} of the {free / 1e9:,.1f} GB that are free"
    if rows < 1:
        one = planned.memory(1, longest, output)
        raise UsageError(
            f"training.positions_at_once=auto: not one fits, of {about}, and {(one.step + one.trained) / 1e9:,.1f} GB "
            "are needed: lower suite.lengths, or set training.checkpointing=true or backbone.quantize=nf4"
        )
    rows = min(rows, recipe.training.batch_size)
    found = rows * (planned.scaffold.length + longest + output)
    warnings.warn(f"training.positions_at_once=auto: {found:,}, a micro-batch of {rows} ({about})", stacklevel=2)
    return found


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a device that are free."""
    free = get_max_memory()
    return int(free[CPU if device.type == CPU else device.index or 0])
