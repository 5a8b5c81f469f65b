"""Deep prompts: trained keys and values in every layer, the same for every input or with a part written for each.

Sources: Li and Liang 2021 (prefix tuning, here without their network); Liu et al. 2022 (P-Tuning v2); starts from a
text, and a first position that stays as it is: Eyuboglu et al. 2025 (Cartridges).
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.caches import Memory, PassMemory, plain, windows
from shoulders.backbone.edits import Edits
from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import SourceNotFound, UsageError
from shoulders.records import KeysValues, Placement, ScaffoldInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, TrainingData
from shoulders.scaffolds.input_prompt import (
    GeneratorConfig,
    InputDependent,
    InputPromptShape,
    encoder_named,
    rebuilt_encoder,
)
from shoulders.scaffolds.program import Pass, Program
from shoulders.scaffolds.soft_prompt import PromptConfig, columns_of, frequent_tokens, insert_in_mask, insert_prompt

CONSIDERED = 64  # training examples of which those that fit are demonstrations
SPREAD = 0.1  # of what is written for an input, over the standard deviation of real keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepPromptConfig(PromptConfig):
    """Values of a deep prompt in a recipe.

    Attributes:
        length: P, number of positions of the prompt; with demonstrations the largest.
        placement: prefix (before everything), infix (the question reads it, the evidence does not), or suffix (the last
            token of the question and the answer read it).
        init: what the model has read at the start: "vocabulary" (frequent tokens), "text" (repeated or cut), "document"
            (the beginning of a file), or "demonstrations" (as many training examples as fit: training then starts at
            few-shot performance); "normal" for random numbers.
        init_text: the text, or the name of the file.
        trained_layers: numbers of the layers that train, from 0; empty for all. Others stay as they start.
        sinks: number of first positions that keep those of the start in every layer.
    """

    kind: str = field(default="deep_prompt", init=False)
    inits: ClassVar[Sequence[str]] = ("vocabulary", "text", "document", "demonstrations", "normal")
    length: int = 16
    trained_layers: tuple[int, ...] = ()
    sinks: int = 0

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        if self.length < 1:
            raise UsageError("scaffold.length must be at least 1 for a deep prompt, got 0: 16 is usual")
        if not 0 <= self.sinks < self.length:
            raise UsageError(
                f"scaffold.sinks is {self.sinks}: from 0 to {self.length - 1}, one less than scaffold.length"
            )


class _Columns(nn.Module):
    """The keys or the values of one layer, of which the first columns may be fixed."""

    fixed: Tensor | None
    trained: nn.Parameter | None

    def __init__(self, start: Float[Tensor, "H P d"], fixed: int) -> None:
        super().__init__()
        start = start.detach().to(torch.float32)
        trained = start[:, fixed:].clone()
        self.register_buffer("fixed", start[:, :fixed].clone() if fixed else None)
        self.register_parameter("trained", nn.Parameter(trained) if trained.numel() else None)

    def forward(self) -> Float[Tensor, "H P d"]:
        """Return all columns."""
        parts = [part for part in (self.fixed, self.trained) if part is not None]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@final
class DeepPrompt(Scaffold, kind="deep_prompt"):
    """Trained keys and values in every layer of the frozen model; no layer computes anything for them.

    Its P positions count as positions of the text. Tokens after the slot attend to them; tokens before it are read by
    the bare model, and can be shared by all scaffolds. The keys of families with rotary positions are those of
    positions 0 to P - 1 wherever the slot is.

    Args:
        start: keys and values of one row to start from; kept in fp32 whatever the backbone's type.
        lm: the backbone; not a child.
        placement: prefix, infix or suffix.
        trained_layers: numbers of the layers that train; empty for all.
        sinks: number of first positions that do not train.

    Raises:
        UsageError: the model has no keys and values, or no such layers, or a window that is too narrow.
        ContextFull: the prompt leaves no room in the context.
    """

    label = "deep prompt"
    Config = DeepPromptConfig
    usual_rate = 0.02

    def __init__(
        self,
        start: KeysValues,
        lm: FrozenLM,
        placement: Placement | str = Placement.PREFIX,
        *,
        trained_layers: Sequence[int] = (),
        sinks: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = lm
        self.placement = Placement(placement)
        self._length, depth = start.layers[0][0].shape[2], len(start.layers)
        check_deep(lm, self._length)
        if wrong := [number for number in trained_layers if not 0 <= number < depth]:
            raise UsageError(f"scaffold.trained_layers has {wrong[0]}: {lm.name!r} has layers 0 to {depth - 1}")
        self.trained_layers, self.sinks = tuple(trained_layers), sinks
        self._windowed = any(windows(lm.config))
        fixed = [sinks if not trained_layers or number in trained_layers else self._length for number in range(depth)]
        self.keys, self.values = (
            nn.ModuleList(_Columns(pair[side][0], count) for pair, count in zip(start.layers, fixed, strict=True))
            for side in (0, 1)
        )

    @classmethod
    def from_text(
        cls, lm: FrozenLM, text: str, *, length: int = 16, placement: Placement | str = Placement.PREFIX
    ) -> Self:
        """Return a prompt that starts as the model has read a text, repeated or cut to its length."""
        return cls.new(DeepPromptConfig(length=length, placement=Placement(placement), init="text", init_text=text), lm)

    @classmethod
    def from_vocabulary(
        cls, lm: FrozenLM, *, length: int = 16, placement: Placement | str = Placement.PREFIX, seed: int = 0
    ) -> Self:
        """Return a prompt that starts as the model has read frequent tokens, drawn by the seed."""
        return cls.new(DeepPromptConfig(length=length, placement=Placement(placement)), lm, seed=seed)

    @classmethod
    def from_demonstrations(
        cls,
        lm: FrozenLM,
        examples: Iterable[tuple[str, str]],
        *,
        length: int = 256,
        placement: Placement | str = Placement.PREFIX,
    ) -> Self:
        """Return a prompt that starts as the model has read questions with answers, as many as fit its length."""
        ids = demonstrations(lm, (f"{question} {answer}" for question, answer in examples), length)
        return cls(read(lm, ids), lm, placement)

    @property
    def length(self) -> int:
        """P, number of positions of the prompt."""
        return self._length

    def keys_values(self, rows: int, dtype: torch.dtype) -> KeysValues:
        """Return the keys and values for each of some rows."""
        return KeysValues(
            tuple(
                (keys().to(dtype).expand(rows, -1, -1, -1), values().to(dtype).expand(rows, -1, -1, -1))
                for keys, values in zip(self.keys, self.values, strict=True)
            )
        )

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text with the prompt in every layer."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        return (yield from self.pass_over(self.keys_values(len(given.embeds), given.embeds.dtype), given, memory))

    def pass_over(self, prompt: KeysValues, given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for a pass over the text with these keys and values at the prompt's place; return the states."""
        slots, last = given.slot or (0,) * len(given.embeds), given.embeds.shape[1] - 1
        if self.placement is Placement.PREFIX:
            # Attention over the whole text does not see padding between prompt and text; a window counts it.
            slots = slots if self._windowed else (0,) * len(slots)
        else:
            slots = tuple(min(slot - (self.placement is Placement.SUFFIX), last) for slot in slots)
        slots = tuple(max(0, slot) for slot in slots)
        if len(set(slots)) == 1:
            return (yield from edited_from(slots[0], given, memory, Edits(prompt)))
        return (yield from self._woven(prompt, slots, given, memory))

    def _woven(
        self, prompt: KeysValues, slots: tuple[int, ...], given: ScaffoldInput, memory: Memory | None
    ) -> Program:
        """Ask for a pass in which columns at each row's own slot have the prompt's keys and values."""
        embeds = given.embeds
        rows, _ = insert_prompt(embeds.new_zeros(len(embeds), self.length, embeds.shape[-1]), embeds, slots)
        mask = None if given.mask is None else insert_in_mask(given.mask, self.length, slots)
        one = None if memory is None else memory.single
        states = yield Pass(rows, mask, one, edits=Edits(prompt, slots))
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        own = positions + self.length * (positions >= torch.tensor(slots, device=embeds.device)[:, None])
        return columns_of(states, own)

    def description(self) -> dict[str, Any]:
        """Return length, placement, and what trains."""
        about = {"length": self.length, "placement": self.placement.value}
        return {**about, "trained_layers": list(self.trained_layers), "sinks": self.sinks}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a prompt of zeros of the same sizes."""
        what = {"trained_layers": description["trained_layers"], "sinks": description["sinks"]}
        return cls(resized(read(lm, [0]), description["length"], torch.zeros), lm, description["placement"], **what)

    @classmethod
    def new(cls, config: DeepPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return a prompt with the start that `config.init` names."""
        check_deep(lm, config.length)
        start = start_of(config, lm, seed, data)
        return cls(start, lm, config.placement, trained_layers=config.trained_layers, sinks=config.sinks)

    @property
    def reads_before(self) -> bool:
        """Whether there is text before the prompt."""
        return self.placement is not Placement.PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDeepPromptConfig(GeneratorConfig, DeepPromptConfig):
    """Values of an input-dependent deep prompt in a recipe: those of the shared one, and of the generator."""

    kind: str = field(default="input_deep_prompt", init=False)


@final
class InputDeepPrompt(InputDependent, kind="input_deep_prompt"):
    """A deep prompt that all inputs share, and keys and values that the generator of ID-PT adds to it for each input.

    These are zero at the start, and have a scale of their own in every layer: a tenth of the standard deviation of the
    keys or values that the shared prompt starts from.

    Args:
        encoder, lm, shape: see `InputDependent`; one query for each position of the prompt.
        base: the shared prompt.
    """

    label = "ID deep prompt"
    Config = InputDeepPromptConfig
    usual_rate = 2e-3  # of the generator
    usual_base_rate = 0.02
    base: DeepPrompt
    spread: Tensor

    def __init__(self, encoder: Encoder, lm: FrozenLM, shape: InputPromptShape, base: DeepPrompt) -> None:
        super().__init__(encoder, lm, shape, base.placement)
        self.base = base
        columns = [one() for pair in zip(base.keys, base.values, strict=True) for one in pair]
        self._sizes = [one.shape[0] * one.shape[2] for one in columns]
        self.project = nn.Linear(encoder.width, sum(self._sizes), bias=False)
        nn.init.zeros_(self.project.weight)
        self.register_buffer("spread", SPREAD * torch.stack([one.detach().std() for one in columns]))

    @property
    def length(self) -> int:
        """P, number of positions of the prompt."""
        return self.base.length

    def keys_values(self, vectors: Float[Tensor, "B P E"], dtype: torch.dtype) -> KeysValues:
        """Return the keys and values for each input, given the generator's vectors."""
        written = self.project(vectors).split(self._sizes, dim=-1)
        shared = [one for pair in self.base.keys_values(len(vectors), torch.float32).layers for one in pair]
        both = [
            (one + scale * part.unflatten(-1, (one.shape[1], -1)).transpose(1, 2)).to(dtype)
            for one, part, scale in zip(shared, written, self.spread, strict=True)
        ]
        return KeysValues(tuple(zip(both[::2], both[1::2], strict=True)))

    def applied(self, vectors: Float[Tensor, "B P E"], given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for one pass over the text with the prompt of its input in every layer."""
        return self.base.pass_over(self.keys_values(vectors, given.embeds.dtype), given, memory)

    def description(self) -> dict[str, Any]:
        """Return sizes, encoder, and the description of the shared prompt."""
        return {**super().description(), "base": self.base.description()}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a generator around the same encoder, and a shared prompt of zeros."""
        base = DeepPrompt.rebuilt(description["base"], lm)
        return cls(rebuilt_encoder(description["encoder"], lm), lm, InputPromptShape(**description["shape"]), base)

    @classmethod
    def new(cls, config: InputDeepPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return a generator with its encoder, and a shared prompt with the start that `config.init` names."""
        base = DeepPrompt.new(config, lm, seed=seed, data=data)
        return cls(encoder_named(config.encoder, lm), lm, config.generator(base.length), base)

    @property
    def reads_before(self) -> bool:
        """Whether there is text before the prompt."""
        return self.base.reads_before


def check_deep(lm: FrozenLM, length: int) -> None:
    """Raise `UsageError` for a model that has no place for a deep prompt of some positions."""
    if not plain(lm.config):
        raise UsageError(
            f"{lm.name!r} ({lm.config.model_type}) has layers that keep no keys and values, such as linear attention: "
            "a deep prompt has no place in them; train scaffold.kind=soft_prompt or low_rank"
        )
    narrowest = min(filter(None, windows(lm.config)), default=0)
    if narrowest and length >= narrowest:
        raise UsageError(
            f"a deep prompt of {length} positions does not fit the sliding window of {narrowest} positions of "
            f"{lm.name!r}: lower scaffold.length to {narrowest - 1} at most"
        )
    lm.check_room(f"a deep prompt of {length} positions and a text", length + 2, "lower scaffold.length")


@torch.no_grad()
def read(lm: FrozenLM, ids: Sequence[int]) -> KeysValues:
    """Return the keys and values of one text in every layer."""
    return lm.keys_values(torch.tensor([list(ids)], device=lm.device))


def resized(known: KeysValues, length: int, make: Any) -> KeysValues:
    """Return keys and values of other positions, made by `make(*shape, device=...)` in fp32."""
    return KeysValues(
        tuple(
            tuple(make(*one.shape[:2], length, one.shape[-1], device=one.device) for one in pair)  # type: ignore[misc]
            for pair in known.layers
        )
    )


def start_of(config: DeepPromptConfig, lm: FrozenLM, seed: int = 0, data: TrainingData = NO_DATA) -> KeysValues:
    """Return the keys and values that the config starts from; on the meta device they have no values.

    Raises:
        UsageError: there is no such file, or no demonstration that fits.
    """
    if lm.device.type == "meta":
        return read(lm, [0] * config.length)
    if config.init == "normal":
        generator = torch.Generator().manual_seed(seed)  # the same start on every device

        def drawn(*shape: int, device: torch.device) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        return resized(read(lm, [0]), config.length, drawn)
    if config.init == "demonstrations":
        texts = (f"{one.question.whole} {one.target}" for one in data.examples())
        return read(lm, demonstrations(lm, texts, config.length))
    if config.init == "vocabulary":
        return read(lm, frequent_tokens(lm, config.length, seed).tolist())
    text = config.init_text if config.init == "text" else _document(config.init_text)
    return read(lm, _fitted(lm.ids(text), config))


def _document(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceNotFound(f"scaffold.init_text={name} cannot be read as a text file: {error}") from error


def _fitted(ids: list[int], config: DeepPromptConfig) -> list[int]:
    """Return the tokens of a text cut to the prompt's length, or repeated; of a document only its beginning."""
    if not ids or (config.init == "document" and len(ids) < config.length):
        raise UsageError(
            f"scaffold.init_text has {len(ids)} tokens, and a prompt of scaffold.length={config.length} starts from "
            "them: give a longer text, or a shorter prompt"
        )
    if config.init == "text" and len(ids) > config.length:
        warnings.warn(
            f"the text that the prompt starts from has {len(ids)} tokens and is cut to its {config.length} positions "
            "(scaffold.length)",
            stacklevel=2,
        )
    return (ids * math.ceil(config.length / len(ids)))[: config.length]


def demonstrations(lm: FrozenLM, texts: Iterable[str], length: int) -> list[int]:
    """Return the tokens of the first texts that fit, with an empty line after each.

    Raises:
        UsageError: there is none, or none fits.
    """
    kept: list[str] = []
    ids: list[int] = []
    sizes: list[int] = []
    for text, _ in zip(texts, range(CONSIDERED), strict=False):
        more = lm.ids("".join(f"{one}\n\n" for one in (*kept, text)))
        sizes.append(len(more) - len(ids))
        if len(more) <= length:
            kept, ids = [*kept, text], more
    if not sizes:
        raise UsageError("there are no training examples to start from: choose another scaffold.init")
    if not kept:
        raise UsageError(
            f"none of {len(sizes)} demonstrations fits the {length} positions of the prompt, the shortest has "
            f"{min(sizes)} tokens: raise scaffold.length"
        )
    return ids


def edited_from(column: int, given: ScaffoldInput, memory: Memory | None, edits: Edits) -> Program:
    """Ask for the bare model's pass over the text before a column and an edited one over the rest; return all states.

    With `given.before` the first one is not asked for, and its states are zeros.
    """
    if column == 0:
        return (yield Pass(given.embeds, given.mask, None if memory is None else memory.single, edits=edits))
    masks = (None, None) if given.mask is None else (given.mask[:, :column], given.mask[:, column:])
    if given.before is not None:
        one = PassMemory.holding(_without_last(given.before, given.slot[0] - column), column, masks[0])
        first = torch.zeros_like(given.embeds[:, :column])
    else:
        one = PassMemory() if memory is None else memory.single
        first = yield Pass(given.embeds[:, :column], masks[0], one)
    rest = yield Pass(given.embeds[:, column:], masks[1], one, edits=edits)
    return torch.cat([first, rest], dim=1)


def _without_last(known: KeysValues, columns: int) -> KeysValues:
    """Return keys and values without their last columns."""
    if not columns:
        return known
    return KeysValues(tuple((keys[:, :, :-columns], values[:, :, :-columns]) for keys, values in known.layers))
