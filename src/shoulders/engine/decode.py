"""Generation and scoring through scaffolds: one pass over each text, then steps or branches from its memory.

`Decode` holds the rows of one scaffold, and `decode` continues several of them, of different scaffolds, one token at a
time in shared passes. Rows that have ended leave; others may join between two steps. Beam search runs in transformers'
generation loop, over the same programs.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shoulders.backbone.caches import Memory
from shoulders.backbone.choosing import Choice, Generated, until_end
from shoulders.backbone.frozen import SCORED_AT_ONCE, FrozenLM, pad_right
from shoulders.engine.together import together
from shoulders.errors import UsageError
from shoulders.records import IGNORE, ScaffoldInput
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.program import Program

WORTH_MOVING = 0.75  # share of rows still open at which a memory is copied without the rows that have ended
ROOM = 64  # free columns that a memory is given at a time: its keys and values are copied once in so many steps
CHARACTER = 4  # bytes of the longest character in UTF-8


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of a given continuation of a text.

    Attributes:
        log_likelihood: summed over its tokens.
        greedy: whether each token is the likeliest, so that greedy decoding would generate it.
    """

    log_likelihood: float
    greedy: bool


@final
class Decode:
    """Rows of one scaffold that are continued, one token in each step.

    Args:
        given: the texts, padded on the left.
        longest: largest number of tokens to generate.
        shortest: number of tokens before an end token may be chosen; stop texts end a row all the same.
        choice: chooses the tokens of these rows alone; the likeliest ones by default.
        branches: number of continuations of each text; they share one pass over it and are next to each other.
        stops: texts that end a row once they have been generated; they stay in its tokens.

    Raises:
        UsageError: the texts have no token, or the stop texts are one string.

    Attributes:
        ids: the tokens of each row so far, without the end token.
    """

    def __init__(
        self,
        lm: FrozenLM,
        scaffold: Scaffold,
        given: ScaffoldInput,
        *,
        longest: int,
        shortest: int = 0,
        choice: Choice | None = None,
        branches: int = 1,
        stops: Sequence[str] = (),
    ) -> None:
        if isinstance(stops, str):
            raise UsageError(f"the stop texts are one string ({stops!r:.80}): give a list of stop texts")
        if len(given.embeds) and not given.embeds.shape[1]:
            raise UsageError("there is no token to continue: give a text, if only the model's beginning token")
        self.lm, self.scaffold, self.given = lm, scaffold, given
        self.longest, self.shortest = longest, shortest
        self.branches, self.stops = branches, tuple(stops)
        self.choice = choice or Choice(lm.ends)
        rows = given.embeds.shape[0] * branches
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self._memory = Memory()
        self._rows = list(range(rows))  # numbers of the rows in the memory
        self._last: Int[Tensor, "M"] | None = None  # the newest token of each of them
        self._open = [True] * rows
        self._steps = 0

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return self._steps >= self.longest or not any(self._open)

    def program(self) -> Program:
        """Return the program whose states predict the next token of each row."""
        if self._last is None:
            return self.scaffold.program(self.given, self._memory)
        self._drop_ended()
        self._memory.make_room(min(ROOM, self.longest - self._steps))
        embeds = self.lm.embed(self._last[:, None])
        return self.scaffold.program(self.given.continued(embeds), self._memory)

    def take(self, states: Float[Tensor, "M T D"]) -> None:
        """Choose the next token of each row from the states that its program returned.

        Raises:
            UsageError: the scaffold did not use the memory, so that a second step would lose the text.
        """
        states = states[:, -1]
        if self._last is None:
            self._check_read()
            states = self._branched(states)
        places = [place for place, row in enumerate(self._rows) if self._open[row]]
        rows, at = [self._rows[place] for place in places], self._index(places)
        logits = self.lm.logits(states[at])
        tokens = self.choice.choose(logits, self._index(rows), may_end=self._steps >= self.shortest)
        self._last = torch.full((len(self._rows),), self.lm.end, device=tokens.device).index_copy(0, at, tokens)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            self._add(row, token)
        self._steps += 1

    def generated(self) -> list[Generated]:
        """Return the tokens of each row with their probability."""
        return self.choice.generated(self.ids)

    def _index(self, numbers: list[int]) -> Int[Tensor, "N"]:
        return torch.tensor(numbers, dtype=torch.long, device=self.lm.device)

    def _check_read(self) -> None:
        if not self._memory.started:
            raise forgotten(self.scaffold)

    def _branched(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "M D"]:
        """Return the states of the branches of each text; the memory branches likewise."""
        if self.branches == 1:
            return states
        owner = torch.arange(len(states), device=states.device).repeat_interleave(self.branches)
        self._memory.select(owner)
        return states[owner]

    def _add(self, row: int, token: int) -> None:
        """Add a token to a row; close the row at an end token or a stop text."""
        if token in self.lm.ends:
            self._open[row] = False
            return
        self.ids[row].append(token)
        if self.stops:
            self._open[row] = not stopped(self.lm, self.ids[row], self.stops)

    def _drop_ended(self) -> None:
        """Remove rows that have ended from the memory, once they are enough to be worth the copy."""
        assert self._last is not None
        places = [place for place, row in enumerate(self._rows) if self._open[row]]
        if len(places) <= WORTH_MOVING * len(self._rows):
            kept = self._index(places)
            self._memory.select(kept)
            self._rows, self._last = [self._rows[place] for place in places], self._last[kept]


def forgotten(scaffold: Scaffold) -> UsageError:
    """Return the error of a scaffold that has read a text and not used its memory."""
    return UsageError(
        f"a scaffold of kind {scaffold.kind!r} leaves its memory empty, so that a text cannot be "
        "continued: its program must yield passes with the memory that it is given"
    )


def stopped(lm: FrozenLM, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Return whether the last of some tokens completes a stop text."""
    # Each token is at least one byte, except special ones, which are no text: the last ones, as many as the longest
    # stop text has bytes, hold any stop text that this token completes.
    reach = max(len(stop.encode()) for stop in stops) + CHARACTER
    text = lm.text([token for token in ids if token not in lm.special][-reach:])
    return any(stop in text for stop in stops)


@torch.inference_mode()
def decode(several: Sequence[Decode], lm: FrozenLM) -> Iterator[None]:
    """Continue rows of several scaffolds until all have ended, in shared passes; yield after each token.

    The sequence may be a list to which rows are appended between two tokens.

    Raises:
        UsageError: the same rows are in the sequence twice.
    """
    while active := [rows for rows in several if not rows.done]:
        if len({id(rows) for rows in active}) < len(active):
            raise UsageError("the same Decode is decoded twice at once: make one for each place")
        for rows, states in zip(active, together([rows.program() for rows in active], lm), strict=True):
            rows.take(states)
        yield


def generate(
    lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, **settings: Any
) -> list[list[int]]:
    """Return the token ids generated after each row of `given`, without the end token.

    Args:
        lm: the frozen model.
        scaffold: the scaffold around it.
        given: the texts, padded on the left.
        longest: largest number of tokens to generate.
        settings: see `Decode`; greedy by default.
    """
    rows = Decode(lm, scaffold, given, longest=longest, **settings)
    for _ in decode([rows], lm):
        pass
    return rows.ids


def likeliest(
    lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, stops: Sequence[str] = ()
) -> list[Generated]:
    """Return the greedy continuation of each row, with its probability."""
    choice = Choice(lm.ends)
    return choice.generated(generate(lm, scaffold, given, longest=longest, choice=choice, stops=stops))


def sampled(
    lm: FrozenLM,
    scaffold: Scaffold,
    given: ScaffoldInput,
    draws: Float[Tensor, "B N L"],
    *,
    temperature: float = 1.0,
    stops: Sequence[str] = (),
) -> list[list[Generated]]:
    """Return N continuations of each row of at most L tokens, from one pass over it.

    Args:
        lm: the frozen model.
        scaffold: the scaffold around it.
        given: the texts, padded on the left.
        draws: numbers uniform on [0, 1); the same numbers give the same continuations, whatever else is in the batch.
        temperature: 1 samples the model's own distribution.
        stops: texts that end a continuation (`Decode`).
    """
    rows, count, longest = draws.shape
    choice = Choice(lm.ends, draws.flatten(0, 1), temperature)
    flat = choice.generated(generate(lm, scaffold, given, longest=longest, branches=count, choice=choice, stops=stops))
    return [flat[row * count : (row + 1) * count] for row in range(rows)]


def stream(lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, **settings: Any) -> Iterator[str]:
    """Yield the text generated after a single row in pieces, each of whole characters."""
    rows = Decode(lm, scaffold, given, longest=longest, **settings)
    yield from pieces(lm, (rows.ids[0] for _ in decode([rows], lm)))


def pieces(lm: FrozenLM, growing: Iterable[list[int]]) -> Iterator[str]:
    """Yield the text of tokens that grow in number, in pieces of whole characters."""
    text = sent = ""
    for ids in growing:
        text = lm.text(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(sent):
            yield text[len(sent) :]
            sent = text
    if len(text) > len(sent):
        yield text[len(sent) :]


@torch.inference_mode()
def score(
    lm: FrozenLM,
    scaffold: Scaffold,
    given: ScaffoldInput,
    continuations: Sequence[Sequence[list[int]]],
    *,
    positions_at_once: int = 1 << 30,
) -> list[list[Scored]]:
    """Return the log-likelihood of each row's continuations, from one pass over the row.

    Args:
        lm: the frozen model.
        scaffold: the scaffold around it.
        given: B texts, padded on the left.
        continuations: token ids of each row's continuations (any number of them, none empty).
        positions_at_once: positions whose keys and values are held at a time; each continuation has its own copy.
    """
    memory = Memory()
    last = scaffold.states(lm, given, memory)[:, -1:]
    return score_from(lm, scaffold, given, memory, last, continuations, positions_at_once)


def score_from(
    lm: FrozenLM,
    scaffold: Scaffold,
    given: ScaffoldInput,
    memory: Memory,
    last: Float[Tensor, "B 1 D"],
    continuations: Sequence[Sequence[list[int]]],
    positions_at_once: int = 1 << 30,
) -> list[list[Scored]]:
    """Return the log-likelihood of continuations of texts that have been read into a memory, which changes.

    Args:
        lm, scaffold, given, continuations, positions_at_once: see `score`.
        memory: of the texts.
        last: state of the last position of each.
    """
    owners = [row for row, some in enumerate(continuations) for _ in some]
    flat = [ids for some in continuations for ids in some]
    longest = max((len(ids) for ids in flat), default=0)
    at_once = max(1, positions_at_once // (memory.seen + longest))
    scores: list[Scored] = []
    for start in range(0, len(flat), at_once):
        end = start + at_once
        branches = memory if end >= len(flat) else deepcopy(memory)
        scores += _branch_scores(lm, scaffold, given, last, branches, owners[start:end], flat[start:end])
    values = iter(scores)
    return [list(islice(values, len(some))) for some in continuations]


def _branch_scores(
    lm: FrozenLM,
    scaffold: Scaffold,
    given: ScaffoldInput,
    last: Float[Tensor, "B 1 D"],
    memory: Memory,
    owners: list[int],
    continuations: list[list[int]],
) -> list[Scored]:
    """Return the scores of continuations that branch off the rows of a memory, which changes."""
    owner = torch.tensor(owners, device=lm.device)
    labels = pad_right(continuations, IGNORE).ids.to(lm.device)
    memory.select(owner)
    states = last[owner]
    if labels.shape[1] > 1:
        ids, mask = labels[:, :-1], labels[:, :-1] != IGNORE
        step = given.continued(lm.embed(ids.masked_fill(~mask, lm.end)), mask)
        states = torch.cat([states, scaffold.states(lm, step, memory)], dim=1)
    return _scored(lm, states, labels)


def _scored(lm: FrozenLM, states: Float[Tensor, "N T D"], labels: Int[Tensor, "N T"]) -> list[Scored]:
    """Return the score of each row's labels, as `FrozenLM.nll` counts them."""
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


@torch.inference_mode()
def generate_with_transformers(
    lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, **settings: Any
) -> list[list[int]]:
    """Return the token ids that transformers' own loop generates after each row: with beams, penalties and the like.

    Args:
        lm: the frozen model.
        scaffold: the scaffold around it.
        given: the texts, padded on the left.
        longest: largest number of tokens to generate.
        settings: of transformers' GenerationConfig, e.g. num_beams, repetition_penalty, num_return_sequences.
    """
    # The loop only counts these tokens: the texts themselves are in `given`.
    start = torch.full((given.embeds.shape[0], 1), lm.end, dtype=torch.long, device=lm.device)
    config = GenerationConfig(
        max_new_tokens=longest,
        eos_token_id=list(lm.ends),
        pad_token_id=lm.end,
        use_cache=True,
        **{"do_sample": False, **settings},
    )
    sequences: Tensor = _Decoder(lm, scaffold, given).generate(  # type: ignore[attr-defined] (of GenerationMixin)
        start,
        attention_mask=torch.ones_like(start),
        generation_config=config,
        past_key_values=_MemoryCache(),
        tokenizer=lm.tokenizer,  # finds `stop_strings`
    )
    return [until_end(row, lm.ends) for row in sequences[:, 1:].tolist()]


class _MemoryCache(Cache):
    """A `Memory` with the interface of transformers' caches."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.memory = Memory()

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.memory.seen

    def reorder_cache(self, beam_idx: Int[Tensor, "B"]) -> None:
        self.memory.select(beam_idx)


class _Decoder(PreTrainedModel, GenerationMixin):
    """A frozen model in its scaffold with the interface of transformers' generation loop; it has no weights."""

    # It computes no attention itself, so that it supports every kernel in the backbone's configuration.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput) -> None:
        super().__init__(lm.config)
        self._lm, self._given = lm, given
        # A function, because a module would become a child.
        self._states = lambda part, memory: scaffold.states(lm, part, memory)
        self.generation_config = GenerationConfig()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # it has no experts itself

    @property
    def device(self) -> torch.device:
        return self._lm.device

    @property
    def dtype(self) -> torch.dtype:
        return self._lm.dtype

    def forward(self, input_ids: Int[Tensor, "B N"], past_key_values: _MemoryCache, **_: Any) -> CausalLMOutputWithPast:
        memory = past_key_values.memory
        if memory.started:
            states = self._states(self._given.continued(self._lm.embed(input_ids[:, -1:])), memory)
        else:  # one pass over each text, from whose memory its beams branch off
            states = self._states(self._given, memory)[:, -1:]
            owner = torch.arange(len(input_ids), device=states.device) // (len(input_ids) // len(states))
            if len(owner) > len(states):
                memory.select(owner)
                states = states[owner]
        return CausalLMOutputWithPast(logits=self._lm.logits(states), past_key_values=past_key_values)
