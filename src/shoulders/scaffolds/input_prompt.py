"""ID-PT: a prompt written for each input by a small encoder and a trained cross-attention network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoulders.backbone.encoder import Encoder, FrozenEncoder, embedding_norm
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory
from shoulders.errors import ContextFull, UsageError, WrongBackbone
from shoulders.records import LMInput, Tokens
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.perceiver import AttentionBlock
from shoulders.scaffolds.program import Encode, Pass, Program
from shoulders.scaffolds.weaving import Placement, prompted

SOURCE_AT_LEAST = 8  # tokens of the input, special ones included, that an encoder has to have room for


@dataclass(frozen=True, slots=True)
class InputPromptShape:
    """Sizes of the generator; the defaults are the paper's (section 2.1, figure 2, and 2.2).

    Attributes:
        length: P, vectors of the generated prompt.
        encoder_length: vectors of p', the learned prompt of the encoder (paper: 330K parameters at width 768).
        layers: self-attention layers after the cross-attention.
        head_width: width of an attention head.
        query_std: of the learned queries at the start. Perceiver IO's 0.02 leaves them far below what the blocks add to
            them, which is nearly the same for all: generated vectors then start as P copies of one (cosine 0.99).
        base: learn a prompt shared by all inputs under the generated one, p + g(x), with g(x) = 0 at the start. Not in
            the paper: training then starts exactly at prompt tuning.
    """

    length: int = 400
    encoder_length: int = 430
    layers: int = 2
    head_width: int = 64
    query_std: float = 1.0
    base: bool = False


@final
class InputPrompt(Scaffold, kind="input_prompt"):
    """Input-dependent prompt tuning.

    The frozen encoder reads the learned encoder prompt p' and the input; a cross-attention layer with P learned queries
    and two self-attention layers, at the encoder's width E, turn what it says into P vectors; one shared matrix takes
    them to the language model's width D.

    Args:
        encoder: a `FrozenEncoder`, or the `FrozenLM` itself as its own encoder. Not a child: neither trained nor saved.
        width: D.
        shape: sizes.
        norm: the length that generated vectors start with: that of the model's token embeddings (`embedding_norm`).
        start: vectors that the shared prompt starts from, where `shape.base` asks for one.
        placement: prefix (the paper), infix or suffix.

    Raises:
        UsageError: `head_width` does not divide the encoder's width.
        ContextFull: the encoder prompt leaves no room for a text.

    Source: the paper, section 2.1 and figure 2; blocks after Jaegle et al. 2021.
    """

    def __init__(
        self,
        encoder: Encoder,
        width: int,
        shape: InputPromptShape,
        *,
        norm: float = 1.0,
        start: Float[Tensor, "P D"] | None = None,
        placement: Placement = Placement.PREFIX,
    ) -> None:
        super().__init__()
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
        self.project = nn.Linear(inner, width, bias=False)
        # Entries of the projected vectors have variance 1; the constant factor brings the vectors to length `norm`. It
        # stands outside the matrix because Adam's steps are of one size whatever a weight's scale: folded in, the first
        # steps would move prompts by several times the length of a token embedding.
        self.norm_of_vectors = norm
        nn.init.normal_(self.project.weight, std=inner**-0.5)
        self.register_parameter("base", None)
        if shape.base:
            self.base = nn.Parameter(torch.zeros(shape.length, width) if start is None else start.clone().float())
            nn.init.zeros_(self.project.weight)

    @property
    def length(self) -> int:
        """P, the number of generated vectors."""
        return self.shape.length

    def prompt(self, source: Tokens) -> Float[Tensor, "B P D"]:
        """Return p(x), the prompt for each source, in fp32."""
        request = self._reading(source)
        return self._written(request.encoder.states(request.embeds, request.mask), request.mask)

    def _reading(self, source: Tokens) -> Encode:
        """Return the request that the encoder reads the sources behind its learned prompt."""
        encoder = self._reader
        embeds = encoder.embed(source.ids)
        rows, learned = len(source.ids), self.encoder_prompt
        read = torch.cat([learned.expand(rows, -1, -1).to(embeds.dtype), embeds], dim=1)
        mask = None
        if source.mask is not None:
            mask = torch.cat([source.mask.new_ones(rows, len(learned)), source.mask], dim=1)
        return Encode(encoder, read, mask)

    def _written(self, encoded: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B P D"]:
        """Return the prompts written for what the encoder has read."""
        vectors = self.across(self.queries.expand(len(encoded), -1, -1), encoded.to(self.queries.dtype), mask)
        for layer in self.layers:
            vectors = layer(vectors)
        prompt = self.project(self.norm(vectors)) * (self.norm_of_vectors / self.project.out_features**0.5)
        return prompt if self.base is None else self.base + prompt

    def program(self, given: LMInput, memory: Memory | None = None) -> Program:
        """Ask the encoder to read each source, and for one pass that also reads the prompts written for them."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        if given.source is None:
            raise ValueError("an input-dependent prompt needs the source it depends on (LMInput.source)")
        reading = self._reading(given.source)
        prompt = self._written((yield reading), reading.mask)
        return (yield from prompted(prompt, given, memory))

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:
        """The generator at `rate`, the shared prompt at `base_rate`: a prompt wants a rate hundreds of times higher."""
        others = [weight for name, weight in self.named_parameters() if name != "base"]
        groups: list[dict[str, Any]] = [{"params": others, "lr": rate}]
        if self.base is not None:
            groups.append({"params": [self.base], "lr": rate if base_rate is None else base_rate, "weight_decay": 0.0})
        return groups

    def description(self) -> dict[str, Any]:
        """Sizes, placement, and the encoder it reads with: which one, not its weights."""
        encoder = {"name": self._reader.name, "fingerprint": self._reader.fingerprint()}
        sizes = {"shape": asdict(self.shape), "norm": self.norm_of_vectors}
        return {**sizes, "placement": self.placement.value, "encoder": encoder}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """A generator around the same encoder; around `lm` itself if that was its encoder.

        Raises:
            WrongBackbone: the encoder by that name has other weights.
        """
        wanted = description["encoder"]
        encoder = lm if wanted["fingerprint"] == lm.fingerprint() else _encoder_like(lm, wanted["name"])
        if encoder.fingerprint() != wanted["fingerprint"]:
            raise WrongBackbone(
                f"the scaffold reads with the encoder {wanted['name']!r} (fingerprint {wanted['fingerprint'][:12]}); "
                f"the one found by that name has other weights (fingerprint {encoder.fingerprint()[:12]})"
            )
        shape = InputPromptShape(**description["shape"])
        placement = Placement(description["placement"])
        return cls(encoder, lm.width, shape, norm=description["norm"], placement=placement)

    @property
    def _reader(self) -> Encoder:
        assert self.encoder is not None
        return self.encoder


def _encoder_like(lm: FrozenLM, name: str) -> FrozenEncoder:
    """The encoder in the type and place of the language model."""
    return FrozenEncoder.load(name, dtype=str(lm.dtype).removeprefix("torch."), device=str(lm.device))
