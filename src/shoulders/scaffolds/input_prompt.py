"""Input-dependent scaffolds: a frozen encoder and a trained network write a part of them for each input.

ID-PT, input-dependent prompt tuning, writes a prompt. Other scaffolds write elsewhere with the same network.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoulders.backbone.caches import Memory
from shoulders.backbone.encoder import Encoder, FrozenEncoder, embedding_norm
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import ContextFull, UsageError, WrongBackbone
from shoulders.records import Placement, ScaffoldInput, Tokens
from shoulders.scaffolds import soft_prompt
from shoulders.scaffolds.base import NO_DATA, Scaffold, TrainingData
from shoulders.scaffolds.program import Encode, Pass, Program
from shoulders.scaffolds.soft_prompt import PromptConfig, SoftPrompt, pass_with_prompt


@final
class AttentionBlock(nn.Module):
    """Pre-norm attention and a GELU network, both residual on the queries: 12 d^2 weights and 13 d others.

    With `across` it is cross-attention: keys and values come from another sequence and have their own norm (2 d more).
    """

    def __init__(self, width: int, heads: int, *, across: bool, widening: int = 4) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width) if across else None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, widening * width), nn.GELU(), nn.Linear(widening * width, width))

    def forward(
        self,
        queries: Float[Tensor, "B P E"],
        read: Float[Tensor, "B S E"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B P E"]:
        """Return the queries after one block; they attend to `read` (False in `mask` = padding) or to each other."""
        normed = self.query_norm(queries)
        keys = normed if read is None or self.key_norm is None else self.key_norm(read)
        hidden = None if mask is None else ~mask
        mixed, _ = self.attention(normed, keys, keys, key_padding_mask=hidden, need_weights=False)
        queries = queries + mixed
        return queries + self.network(self.network_norm(queries))


SELF = "self"  # the language model as its own encoder
SOURCE_AT_LEAST = 8  # tokens of the input, special ones included, that an encoder must have room for


@dataclass(frozen=True, slots=True)
class InputPromptShape:
    """Sizes of the generator; the defaults are the paper's (section 2.1, figure 2, and 2.2).

    Attributes:
        length: P, number of trained queries, and so of vectors of the generated prompt.
        encoder_length: number of vectors of p', the trained prompt of the encoder (paper: 330K weights at width 768).
        layers: number of self-attention layers after the cross-attention.
        head_width: width of an attention head.
        query_std: standard deviation of the trained queries at the start. With Perceiver IO's 0.02 they are far smaller
            than what the blocks add, which is nearly the same for all: the generated vectors then start as P copies of
            one vector (cosine 0.99).
        base: train a prompt shared by all inputs and add the generated one, p + g(x), with g(x) = 0 at the start. Not
            in the paper: training then starts exactly at prompt tuning.
    """

    length: int = 400
    encoder_length: int = 430
    layers: int = 2
    head_width: int = 64
    query_std: float = 1.0
    base: bool = False


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Values of a generator in a recipe, the first base class beside those of what it writes, whose checks come first.

    It has no slots, so that there can be a second one.

    Attributes:
        encoder: a source name, or "self" for the frozen model itself.
        encoder_length, layers, head_width, query_std: see `InputPromptShape`.
    """

    encoder: str = "google-t5/t5-base"
    encoder_length: int = 430
    layers: int = 2
    head_width: int = 64
    query_std: float = 1.0

    def __post_init__(self) -> None:
        beside: Any = super()
        beside.__post_init__()
        self.check_generator()

    def check_generator(self) -> None:
        """Raise `UsageError` for a value that does not fit."""
        least = {"encoder_length": 0, "layers": 0, "head_width": 1}
        for name, least_value in least.items():
            if getattr(self, name) < least_value:
                raise UsageError(f"scaffold.{name} must be at least {least_value}, got {getattr(self, name)}")
        if not 0 <= self.query_std < math.inf:
            raise UsageError(f"scaffold.query_std must be at least 0, got {self.query_std}: 1 is usual")

    def generator(self, queries: int, *, base: bool = True) -> InputPromptShape:
        """Return the sizes of a generator of some queries."""
        sizes = {item.name: getattr(self, item.name) for item in fields(GeneratorConfig) if item.name != "encoder"}
        return InputPromptShape(length=queries, base=base, **sizes)


class InputDependent(Scaffold):
    """A scaffold of which a part is written for each input; base class.

    The frozen encoder reads the trained encoder prompt p' and the input. A cross-attention layer with P trained queries
    and two self-attention layers, at the encoder's width E, turn its states into P vectors. From these a subclass
    writes its part, and asks for a pass with it (`applied`).

    Args:
        encoder: a `FrozenEncoder`, or the `FrozenLM` itself. Not a child: neither trained nor saved.
        lm: the language model; not a child either.
        shape: sizes.
        placement: prefix, infix or suffix.

    Raises:
        UsageError: `head_width` does not divide the encoder's width.
        ContextFull: the encoder prompt leaves no room for a text.

    Attributes:
        base: what all inputs share, if there is such a part.

    Source: the paper, section 2.1 and figure 2; blocks after Jaegle et al. 2021.
    """

    base: Any

    def __init__(
        self, encoder: Encoder, lm: FrozenLM, shape: InputPromptShape, placement: Placement | str = Placement.PREFIX
    ) -> None:
        super().__init__()
        self.backbone = lm
        inner = encoder.width
        if inner % shape.head_width:
            raise UsageError(f"head_width {shape.head_width} does not divide the encoder's width {inner}")
        if shape.encoder_length + SOURCE_AT_LEAST > encoder.context:
            raise ContextFull(
                f"an encoder prompt of {shape.encoder_length} vectors and a text of {SOURCE_AT_LEAST} tokens",
                wanted=shape.encoder_length + SOURCE_AT_LEAST,
                room=encoder.context,
                way_out="lower encoder_length (scaffold.encoder_length)",
            )
        heads = inner // shape.head_width
        self.encoder = encoder
        self.shape = shape
        self.placement, self.source_room = Placement(placement), shape.encoder_length
        scale = embedding_norm(encoder) / inner**0.5
        self.encoder_prompt = nn.Parameter(torch.randn(shape.encoder_length, inner) * scale)
        self.queries = nn.Parameter(torch.randn(shape.length, inner) * shape.query_std)
        self.across = AttentionBlock(inner, heads, across=True)
        self.layers = nn.ModuleList(AttentionBlock(inner, heads, across=False) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(inner)

    @abstractmethod
    def applied(self, vectors: Float[Tensor, "B P E"], given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for a pass over the text with what is written from these vectors; return its states."""

    def encode(self, source: Tokens) -> Encode:
        """Return the request for the encoder's states of its trained prompt and the sources."""
        encoder = self._reader
        embeds = encoder.embed(source.ids)
        rows, learned = len(source.ids), self.encoder_prompt
        read = torch.cat([learned.expand(rows, -1, -1).to(embeds.dtype), embeds], dim=1)
        mask = None
        if source.mask is not None:
            mask = torch.cat([source.mask.new_ones(rows, len(learned)), source.mask], dim=1)
        return Encode(encoder, read, mask)

    def vectors(self, encoded: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B P E"]:
        """Return the vectors of each input, in fp32, given the encoder's states."""
        vectors = self.across(self.queries.expand(len(encoded), -1, -1), encoded.to(self.queries.dtype), mask)
        for layer in self.layers:
            vectors = layer(vectors)
        return self.norm(vectors)

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for the encoder's states of each source, and for a pass over the text with what is written from them."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        if given.source is None:
            raise ValueError("an input-dependent scaffold needs the source it depends on (ScaffoldInput.source)")
        request = self.encode(given.source)
        vectors = self.vectors((yield request), request.mask)
        return (yield from self.applied(vectors, given, memory))

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:
        """Return the generator at `rate`, and what all inputs share (`base`) at `base_rate`."""
        named = list(self.named_parameters())
        shared = [weight for name, weight in named if name.split(".")[0] == "base"]
        written = [weight for name, weight in named if name.split(".")[0] != "base"]
        groups: list[dict[str, Any]] = [{"params": written, "lr": rate}]
        if shared:
            groups.append({"params": shared, "lr": rate if base_rate is None else base_rate, "weight_decay": 0.0})
        return groups

    def description(self) -> dict[str, Any]:
        """Return sizes, placement, and the encoder's name and fingerprint."""
        encoder = {"name": self._reader.name, "fingerprint": self._reader.fingerprint()}
        return {"shape": asdict(self.shape), "placement": self.placement.value, "encoder": encoder}

    def started_from(self, trained: Scaffold, name: str) -> Scaffold:
        """Return the scaffold that training starts from; also from a trained one of what all inputs share."""
        if isinstance(self.base, Scaffold) and isinstance(trained, type(self.base)):
            self.base.load_state_dict(self.base.started_from(trained, name).state_dict())
            return self
        return super().started_from(trained, name)

    @property
    def _reader(self) -> Encoder:
        assert self.encoder is not None
        return self.encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPromptConfig(GeneratorConfig, PromptConfig):
    """Values of an input-dependent prompt in a recipe: those of every prompt, and of its generator.

    Attributes:
        base: see `InputPromptShape`.
    """

    kind: str = field(default="input_prompt", init=False)
    base: bool = False

    @property
    def shape(self) -> InputPromptShape:
        """Sizes of the generator."""
        return self.generator(self.length, base=self.base)


@final
class InputPrompt(InputDependent, kind="input_prompt"):
    """Input-dependent prompt tuning: one shared matrix projects the generator's vectors to the model's width D.

    Args:
        encoder, lm, shape, placement: see `InputDependent`.
        norm: mean length of the generated vectors at the start; None for that of the model's token embeddings.
        start: vectors that the shared prompt starts from, if `shape.base` is set.

    Source: the paper, section 2.1 and figure 2.
    """

    label = "ID-PT"
    Config = InputPromptConfig
    usual_rate = 2e-3  # of the generator, with a rate that falls to 0 (experiments/001)

    def __init__(
        self,
        encoder: Encoder,
        lm: FrozenLM,
        shape: InputPromptShape,
        *,
        norm: float | None = None,
        start: Float[Tensor, "P D"] | None = None,
        placement: Placement | str = Placement.PREFIX,
    ) -> None:
        super().__init__(encoder, lm, shape, placement)
        inner, width = encoder.width, lm.width
        self.project = nn.Linear(inner, width, bias=False)
        # Entries of the projected vectors have variance 1; a constant factor scales the vectors to length `norm`. It is
        # not part of the matrix because Adam's steps do not depend on a weight's scale: the first steps would move
        # prompts by several times the length of a token embedding.
        self.norm_of_vectors = embedding_norm(lm) if norm is None else norm
        nn.init.normal_(self.project.weight, std=inner**-0.5)
        self.register_parameter("base", None)
        if shape.base:
            self.base = nn.Parameter(torch.zeros(shape.length, width) if start is None else start.clone().float())
            nn.init.zeros_(self.project.weight)

    @property
    def length(self) -> int:
        """P, number of generated vectors."""
        return self.shape.length

    def prompt(self, source: Tokens) -> Float[Tensor, "B P D"]:
        """Return p(x), the prompt for each source, in fp32."""
        request = self.encode(source)
        return self._generated(self.vectors(request.encoder.states(request.embeds, request.mask), request.mask))

    def _generated(self, vectors: Float[Tensor, "B P E"]) -> Float[Tensor, "B P D"]:
        prompt = self.project(vectors) * (self.norm_of_vectors / self.project.out_features**0.5)
        return prompt if self.base is None else self.base + prompt

    def applied(self, vectors: Float[Tensor, "B P E"], given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for one pass over the text with the generated prompt."""
        return pass_with_prompt(self._generated(vectors), given, memory)

    def description(self) -> dict[str, Any]:
        """Return sizes, norm, placement, and the encoder's name and fingerprint."""
        return {**super().description(), "norm": self.norm_of_vectors}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a generator around the same encoder; around `lm` itself if that was its encoder.

        Raises:
            WrongBackbone: the encoder of that name has other weights.
        """
        encoder = rebuilt_encoder(description["encoder"], lm)
        shape = InputPromptShape(**description["shape"])
        placement = Placement(description["placement"])
        return cls(encoder, lm, shape, norm=description["norm"], placement=placement)

    @classmethod
    def new(cls, config: InputPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return a generator with its encoder and, with `config.base`, a shared prompt that starts as `init` says."""
        start = soft_prompt.chosen(config, lm, seed, data)(config.length) if config.base else None
        return cls(encoder_named(config.encoder, lm), lm, config.shape, start=start, placement=config.placement)

    @property
    def reads_before(self) -> bool:
        """Whether there is text before the prompt."""
        return self.length > 0 and self.placement is not Placement.PREFIX

    def started_from(self, trained: Scaffold, name: str) -> Scaffold:
        """Return the scaffold that training starts from; with a base also from a soft prompt p, as p + g(x)."""
        if self.base is None or not isinstance(trained, SoftPrompt):
            return super().started_from(trained, name)
        wanted, found = (self.length, self.placement), (trained.length, trained.placement)
        if found != wanted:
            raise UsageError(
                f"scaffold.start={name} is a {found[1].value} of {found[0]} vectors, the recipe asks for a "
                f"{wanted[1].value} of {wanted[0]}: change scaffold.length or scaffold.placement"
            )
        with torch.no_grad():
            self.base.copy_(trained.prompt)
        return self


def encoder_named(name: str, lm: FrozenLM) -> Encoder:
    """Load the encoder in the type and on the device of the language model; for "self" return the model itself."""
    if name == SELF:
        return lm
    return FrozenEncoder.load(name, dtype=str(lm.dtype).removeprefix("torch."), device=str(lm.device))


def rebuilt_encoder(wanted: Mapping[str, str], lm: FrozenLM) -> Encoder:
    """Return the encoder that a scaffold was described with; `lm` itself if that was its encoder.

    Raises:
        WrongBackbone: the encoder of that name has other weights.
    """
    encoder = encoder_named(SELF if wanted["fingerprint"] == lm.fingerprint() else wanted["name"], lm)
    if encoder.fingerprint() != wanted["fingerprint"]:
        raise WrongBackbone(
            f"the scaffold reads with the encoder {wanted['name']!r} (fingerprint {wanted['fingerprint'][:12]}); "
            f"the one found by that name has other weights (fingerprint {encoder.fingerprint()[:12]})"
        )
    return encoder
