"""Generation and scoring through a scaffold: one prefill, then steps or branches from its memory.

Generation runs in transformers' own loop (greedy, sampling, beams, stopping criteria, streamers). What it decodes is
not a Hugging Face model but `scaffold.states` with a `Memory`, so every scaffold, of one pass or several, decodes the
same way and no scaffold has a decoder of its own.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from shoulders.backbone.choosing import Choice, Generated, until_end
from shoulders.backbone.frozen import SCORED_AT_ONCE, FrozenLM, pad_right
from shoulders.backbone.memory import Memory
from shoulders.records import IGNORE, LMInput

WORTH_MOVING = 0.75  # of the rows in a memory; a smaller share of them that goes on is copied into a smaller one
States = Callable[[LMInput, Memory], Float[Tensor, "B T D"]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A given continuation of a text.

    Attributes:
        log_likelihood: summed over its tokens.
        greedy: whether each of them is the likeliest, so that greedy decoding would give it.
    """

    log_likelihood: float
    greedy: bool


class Reads(Protocol):
    """A scaffold as decoding sees it."""

    def memory(self, lm: FrozenLM) -> Memory:
        """An empty memory for one decode."""
        ...

    def states(self, lm: FrozenLM, given: LMInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """Final hidden states of the text positions."""
        ...


@torch.inference_mode()
def generate(
    lm: FrozenLM,
    scaffold: Reads,
    given: LMInput,
    *,
    longest: int,
    branches: int = 1,
    choice: Choice | None = None,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Token ids generated after each row of `given` (left-padded), the end token left out.

    Args:
        longest: tokens to generate at most.
        branches: continuations of each row; they share its prefill and stand next to each other.
        choice: chooses the tokens.
        streamer: is handed tokens as they come (one row only).
        settings: of transformers' GenerationConfig, e.g. do_sample, temperature, num_beams, num_return_sequences.
            Greedy by default. Several returned sequences of a row share its prefill and stand next to each other.
    """
    rows = given.embeds.shape[0] * branches
    decoder = _Decoder(lm, lambda part, memory: scaffold.states(lm, part, memory), given, choice)
    # The loop only counts these: the texts themselves are in `given`.
    start = torch.full((rows, 1), lm.end, dtype=torch.long, device=lm.device)
    config = GenerationConfig(
        max_new_tokens=longest,
        eos_token_id=list(lm.ends),
        pad_token_id=lm.end,
        use_cache=True,
        **{"do_sample": False, **settings},
    )
    sequences: Tensor = decoder.generate(  # type: ignore[attr-defined] (of GenerationMixin)
        start,
        attention_mask=torch.ones_like(start),
        generation_config=config,
        past_key_values=scaffold.memory(lm),
        logits_processor=LogitsProcessorList([choice] if choice else []),
        streamer=streamer,
        tokenizer=lm.tokenizer,  # what `stop_strings` are found with
    )
    return [until_end(row, lm.ends) for row in sequences[:, 1:].tolist()]


def likeliest(lm: FrozenLM, scaffold: Reads, given: LMInput, *, longest: int) -> list[Generated]:
    """The greedy continuation of each row, and how sure the model was of it."""
    choice = Choice(lm.ends)
    return choice.generated(generate(lm, scaffold, given, longest=longest, choice=choice))


def sampled(
    lm: FrozenLM, scaffold: Reads, given: LMInput, draws: Float[Tensor, "B N L"], *, temperature: float = 1.0
) -> list[list[Generated]]:
    """N continuations of each row of at most L tokens, from one reading of it.

    Args:
        draws: uniform on [0, 1): the same ones give the same continuations, whatever else is in the batch.
        temperature: 1 follows the model's own distribution.
    """
    rows, count, longest = draws.shape
    choice = Choice(lm.ends, draws.flatten(0, 1), temperature)
    flat = choice.generated(generate(lm, scaffold, given, longest=longest, branches=count, choice=choice))
    return [flat[row * count : (row + 1) * count] for row in range(rows)]


@torch.inference_mode()
def score(
    lm: FrozenLM,
    scaffold: Reads,
    given: LMInput,
    continuations: Sequence[Sequence[list[int]]],
    *,
    positions_at_once: int = 1 << 30,
) -> list[list[Scored]]:
    """Log-likelihood of each row's continuations; the rows' own texts are read once.

    Args:
        given: B rows, left-padded.
        continuations: for each row its continuations as token ids (any number of them, none empty).
        positions_at_once: keys and values held for branches at a time, in positions: each has a copy of its row's.
    """
    memory = scaffold.memory(lm)
    last = scaffold.states(lm, given, memory)[:, -1:]
    owners = [row for row, some in enumerate(continuations) for _ in some]
    flat = [ids for some in continuations for ids in some]
    longest = max((len(ids) for ids in flat), default=0)
    at_once = max(1, positions_at_once // (memory.passes[0].seen + longest))
    found: list[Scored] = []
    for start in range(0, len(flat), at_once):
        end = start + at_once
        branches = memory if end >= len(flat) else deepcopy(memory)
        found += _branch_scores(lm, scaffold, given, last, branches, owners[start:end], flat[start:end])
    values = iter(found)
    return [list(islice(values, len(some))) for some in continuations]


def _branch_scores(
    lm: FrozenLM,
    scaffold: Reads,
    given: LMInput,
    last: Float[Tensor, "B 1 D"],
    memory: Memory,
    owners: list[int],
    continuations: list[list[int]],
) -> list[Scored]:
    """Scores of continuations that branch off the rows of a memory, which is used up."""
    owner = torch.tensor(owners, device=lm.device)
    labels = pad_right(continuations, IGNORE).ids.to(lm.device)
    memory.select(owner)
    states = last[owner]
    if labels.shape[1] > 1:
        read, mask = labels[:, :-1], labels[:, :-1] != IGNORE
        step = given.continued(lm.embed(read.masked_fill(~mask, lm.end)), mask)
        states = torch.cat([states, scaffold.states(lm, step, memory)], dim=1)
    return _scored(lm, states, labels)


def _scored(lm: FrozenLM, states: Float[Tensor, "N T D"], labels: Int[Tensor, "N T"]) -> list[Scored]:
    """Of each row's labels, as `FrozenLM.nll` counts them, with what greedy decoding would have chosen."""
    wanted = labels != IGNORE
    rows = wanted.nonzero()[:, 0]
    sums = torch.zeros(len(labels), device=labels.device)
    greedy = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    pieces = zip(*(part.split(SCORED_AT_ONCE) for part in (rows, states[wanted], labels[wanted])), strict=True)
    for row, hidden, tokens in pieces:
        logits = lm.logits(hidden).float()
        sums.index_add_(0, row, -F.cross_entropy(logits, tokens, reduction="none"))
        greedy[row[logits.argmax(-1) != tokens]] = False
    return [Scored(*one) for one in zip(sums.tolist(), greedy.tolist(), strict=True)]


class _Decoder(PreTrainedModel, GenerationMixin):
    """What transformers' generation loop takes for a model: it has no weights and keeps nothing of the backbone."""

    # It computes no attention itself, so whatever the backbone's configuration asks for is fine.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, lm: FrozenLM, states: States, given: LMInput, choice: Choice | None) -> None:
        super().__init__(lm.config)
        self._lm, self._states, self._given, self._choice = lm, states, given, choice
        self._rows: Tensor | None = None  # that are still decoded; None: all of them
        self.generation_config = GenerationConfig()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # nor has it experts: a mixture's choice of them is the backbone's own

    @property
    def device(self) -> torch.device:
        return self._lm.device

    @property
    def dtype(self) -> torch.dtype:
        return self._lm.dtype

    def forward(self, input_ids: Int[Tensor, "B N"], past_key_values: Memory, **_: Any) -> CausalLMOutputWithPast:
        memory = past_key_values
        if not memory.started:
            states = self._read_once(memory, branches=input_ids.shape[0] // self._given.embeds.shape[0])
            return CausalLMOutputWithPast(logits=self._lm.logits(states), past_key_values=memory)
        rows = self._open_rows(memory)
        last = input_ids[:, -1:] if rows is None else input_ids[rows, -1:]
        logits = self._lm.logits(self._states(self._given.continued(self._lm.embed(last)), memory))
        if rows is not None:  # the loop counts all rows, and puts the end token where one has ended
            logits = logits.new_zeros(len(input_ids), *logits.shape[1:]).index_copy(0, rows, logits)
        return CausalLMOutputWithPast(logits=logits, past_key_values=memory)

    def _open_rows(self, memory: Memory) -> Tensor | None:
        """The rows that have not ended; the others leave the memory, once they are enough to be worth the copy."""
        if self._choice is None:
            return None
        open_ = self._choice.open if self._rows is None else self._choice.open[self._rows]
        kept = open_.nonzero()[:, 0]
        if len(kept) <= WORTH_MOVING * len(open_):
            memory.select(kept)
            self._rows = kept if self._rows is None else self._rows[kept]
        return self._rows

    def _read_once(self, memory: Memory, branches: int) -> Float[Tensor, "B 1 D"]:
        """Read every text once; samples and beams branch off its memory afterwards."""
        states = self._states(self._given, memory)[:, -1:]
        if branches == 1:
            return states
        owner = torch.arange(len(states), device=states.device).repeat_interleave(branches)
        memory.select(owner)
        return states[owner]
