"""Reading texts into memory, in chunks: many at once, each beginning once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.caches import PassMemory
from shoulders.backbone.edits import Edits
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import StackInput
from shoulders.engine.pool import Known, Pool, common_beginning, content_keys, digest_of
from shoulders.engine.work import Counts, Returned, Work, failure, resume
from shoulders.scaffolds.program import Blocks, Encode, Pass, Program, fulfil

PADDING = 32  # columns of padding in all rows that cost less than another forward
DISTANCE = 256  # columns read before, which are only attended to, by which the rows of a forward may differ
WORTH_WAITING = 16  # columns that another request is just reading


@dataclass(slots=True, eq=False)
class _Columns:
    """A pass over a text, of which some columns have been read.

    Attributes:
        memory: of the pass.
        keys: digest of each column; None if the columns cannot be shared.
        known: the columns read so far as they are kept; None before any, and if they are not kept.
        given: number of its first columns that are the request's text as it was given. They are kept by themselves, for
            what other scaffolds put after them.
        whole: whether it has to be read at once.
        first: whether it is the first pass over its text.
        found: whether it has been looked for what is known.
        states: final states of the columns read so far.
    """

    request: Pass
    memory: PassMemory
    keys: list[bytes] | None = None
    given: int = 0
    whole: bool = False
    first: bool = False
    known: Known | None = None
    found: bool = False
    read: int = 0
    states: list[Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Number of columns that have yet to be read."""
        return self.request.embeds.shape[1] - self.read

    def next(self, count: int) -> StackInput:
        """Return the next columns."""
        part = slice(self.read, self.read + count)
        mask, edits = self.request.mask, self.request.edits
        embeds, mask = self.request.embeds[:, part], None if mask is None else mask[:, part]
        if edits is not None and edits.vectors is not None:
            edits = replace(edits, vectors=edits.vectors[:, part])
        return StackInput(embeds, mask, self.memory, edits, self.request.beside)


@dataclass(slots=True, eq=False)
class _Text:
    """A text that is read by its scaffold's program.

    Attributes:
        result: what the program is sent next.
        columns: the pass that it waits for; None if it can go on.
        contents: length and digest of what each memory holds, by its id.
    """

    work: Work
    program: Program
    result: Tensor | None = None
    columns: _Columns | None = None
    contents: dict[int, tuple[int, bytes]] = field(default_factory=dict)


@final
class Reader:
    """Runs programs over their texts, up to a number of columns in each step.

    A text whose beginning another request is just reading waits for it. Once a program has returned, its text is read.
    """

    def __init__(self, lm: FrozenLM, pool: Pool, counts: Counts) -> None:
        self.lm, self.pool, self.counts = lm, pool, counts
        self._texts: list[_Text] = []

    def add(self, work: Work) -> None:
        """Begin to read the text of a request."""
        self._texts.append(_Text(work, work.request.scaffold.program(work.request.given, work.memory)))

    def drop(self, work: Work) -> None:
        """Forget a request."""
        self._texts = [text for text in self._texts if text.work is not work]

    def read(self, columns: int) -> Iterator[tuple[Work, Float[Tensor, "1 T D"] | Exception]]:
        """Read at most so many columns; yield each request whose text has been read, with its states, or its error."""
        while True:
            yield from self._resume()
            chunks = list(self._chunks(columns))
            if not chunks and all(text.columns is not None for text in self._texts):
                return
            columns = max(0, columns - sum(count for _, count in chunks))
            for group in _alike(chunks):
                yield from self._run(group)

    def _resume(self) -> Iterator[tuple[Work, Tensor | Exception]]:
        """Let every program go on until it waits for a pass."""
        while ready := [text for text in self._texts if text.columns is None]:
            others: list[tuple[_Text, Encode | Blocks]] = []
            for text in ready:
                try:
                    asked = resume(text.program, text.result, self.lm)
                    if isinstance(asked, Pass):
                        text.columns = self._columns(asked, text)
                    elif not isinstance(asked, Returned):
                        others.append((text, asked))
                except Exception as error:  # whatever a scaffold of another package raises
                    yield self._ended(text, failure(error))
                else:
                    if isinstance(asked, Returned):
                        yield self._ended(text, asked.states)
            yield from self._fulfil(others)

    def _ended(self, text: _Text, result: Tensor | Exception) -> tuple[Work, Tensor | Exception]:
        self.drop(text.work)
        return text.work, result

    def _fulfil(self, asked: Sequence[tuple[_Text, Encode | Blocks]]) -> Iterator[tuple[Work, Tensor | Exception]]:
        """Run encoders and Connectors; those of one model share a forward."""
        groups: dict[Any, list[tuple[_Text, Encode | Blocks]]] = {}
        for text, request in asked:
            groups.setdefault((type(request), request.group), []).append((text, request))
            self._prepare(request, text.work)
        for group in groups.values():
            try:
                results = fulfil([request for _, request in group], self.lm)
            except Exception as error:
                for text, _ in group:
                    yield self._ended(text, failure(error))
            else:
                for (text, _), result in zip(group, results, strict=True):
                    text.result = result

    def _prepare(self, request: Encode | Blocks, work: Work) -> None:
        """Count a pass, and give a Connector its weights and a memory that a bank can take over."""
        if isinstance(request, Encode):
            if request.encoder is self.lm:
                work.add_pass(request)
        elif request.memory is not None:
            request.memory.whole = self.pool.shares
            request.memory.weights = self.pool.weights(request.connector, request.states.dtype)

    def _columns(self, asked: Pass, text: _Text) -> _Columns:
        """Return the columns of a pass, with their digests if they can be shared."""
        work = text.work
        work.add_pass(asked)
        memory = asked.memory or PassMemory()
        if memory.cache is None:
            memory.whole = self.pool.shares
        if asked.mask is not None and bool(asked.mask.all()):
            asked = replace(asked, mask=None)
        keys, given = None, 0
        whole = asked.edits is not None and bool(asked.edits.slot)
        if self.pool.shares and asked.mask is None and memory.mask is None and not whole and asked.part is None:
            content = self._content(memory, asked.edits, text)
            keys = content_keys(content, _vectors(asked).to(self.lm.dtype))
            given = _begins_alike(asked.embeds[0], work.request.given.embeds[0])
        if asked.edits is not None and not whole:
            memory.begin(asked.edits, self.lm.config, 1)
            vectors = asked.edits.vectors
            asked = replace(asked, edits=None if vectors is None else Edits(vectors=vectors))
        first = not work.read
        if first:
            work.read = asked.embeds.shape[1]
        return _Columns(asked, memory, keys, given, whole, first)

    def _content(self, memory: PassMemory, edits: Edits | None, text: _Text) -> bytes:
        """Return a digest of what a pass comes after, and of the edits that it is read with."""
        length, content = text.contents.get(id(memory), (0, b""))
        if length != memory.seen:
            content = digest_of(memory.keys_values(self.lm.config))
        layers = memory.layers if edits is None else edits.layers or memory.layers
        if edits is not None and edits.prompt is not None:
            content += digest_of(edits.prompt)
        return content + self.pool.digests.of_edits(layers) if layers else content

    def _chunks(self, columns: int) -> Iterator[tuple[_Text, int]]:
        """Yield texts with the number of columns to read of each.

        The oldest has at least half of the columns, so that it is read in time. The others have the rest, the shortest
        first, so that a short question does not wait for a long document.
        """
        ready: list[tuple[_Text, _Columns]] = []
        for text in self._texts:
            one = text.columns
            if one is not None and self._look(one, [other for _, other in ready], text.work):
                ready.append((text, one))
        for text, one in ready:
            if one.left == 0:
                self._complete(text, one)
        ready = [(text, one) for text, one in ready if one.left]
        if not ready or not columns:
            return
        oldest, others = ready[0], sorted(ready[1:], key=lambda pair: pair[1].left)
        share = max(columns // 2, columns - sum(one.left for _, one in others), 1)
        for text, one in [oldest, *others]:
            count = one.left if one.whole and share else min(one.left, share)
            columns = share = max(0, columns - count)
            if count:
                yield text, count

    def _look(self, one: _Columns, before: Sequence[_Columns], work: Work) -> bool:
        """Use what is known of a text; return whether the rest can be read now, and is not just being read."""
        if one.found or one.keys is None:
            return True
        known = self.pool.texts.find(one.keys)
        common = max((common_beginning(one.keys, other.keys) for other in before if other.keys), default=0)
        if common - known.length >= WORTH_WAITING:
            return False
        one.found, one.known = True, known
        if known.length:
            layers, room = known.read(0 if one.memory.seen else one.left - known.length)
            one.memory.add_known(layers, known.length, self.lm.config, room)
            one.states.append(known.states())
            one.read = known.length
            self.counts.hits += known.length
            if one.first:
                work.cached = known.length
        return True

    def _run(self, group: Sequence[tuple[_Text, int]]) -> Iterator[tuple[Work, Tensor | Exception]]:
        """Read columns of several texts in one forward."""
        columns = [text.columns for text, _ in group if text.columns is not None]
        try:
            parts = [one.next(count) for one, (_, count) in zip(columns, group, strict=True)]
            results = self.lm.states_together(parts, columns[0].request.part)
        except Exception as error:
            for text, _ in group:
                yield self._ended(text, failure(error))
            return
        self.counts.forwards += 1
        self.counts.passes += len(group)
        for (text, count), one, states in zip(group, columns, results, strict=True):
            self._keep(one, states)
            one.states.append(states)
            one.read += count
            self.counts.misses += count
            if one.left == 0:
                self._complete(text, one)

    def _keep(self, one: _Columns, states: Float[Tensor, "1 N D"]) -> None:
        """Keep the columns that have just been read, the given text apart from what comes after it."""
        count, keys, total = states.shape[1], one.keys or [], one.request.embeds.shape[1]
        inside = min(max(0, one.given - one.read), count)
        for begin, end in ((0, inside), (inside, count)):
            if one.known is not None and begin < end:
                upto = one.read + end
                one.known = self.pool.keep(
                    one.known, keys[:upto], one.memory, states[:, begin:end],
                    later=count - end, ends=upto in (one.given, total),
                )  # fmt: skip

    def _complete(self, text: _Text, columns: _Columns) -> None:
        text.result, text.columns = torch.cat(columns.states, dim=1), None
        if columns.keys:
            text.contents[id(columns.memory)] = columns.memory.seen, columns.keys[-1]


def _vectors(asked: Pass) -> Float[Tensor, "T N"]:
    """Return all that a pass reads at each column."""
    edits, own = asked.edits, asked.embeds[0]
    return own if edits is None or edits.vectors is None else torch.cat([own, edits.vectors[0].to(own.dtype)], dim=-1)


def _begins_alike(one: Float[Tensor, "T D"], other: Float[Tensor, "N D"]) -> int:
    """Return the number of first columns that are equal."""
    count = min(len(one), len(other))
    return int((one[:count] == other[:count]).all(-1).cumprod(0).sum())


def _alike(chunks: Sequence[tuple[_Text, int]]) -> Iterator[list[tuple[_Text, int]]]:
    """Yield groups of chunks of the same layers that have nearly as many columns, after nearly as many.

    Together they need no padding.
    """
    group: list[tuple[_Text, int]] = []
    padding = 0

    def seen(text: _Text) -> int:
        return 0 if text.columns is None else text.columns.memory.seen

    def part(text: _Text) -> int:
        return 0 if text.columns is None else id(text.columns.request.part)

    for text, count in sorted(chunks, key=lambda chunk: (part(chunk[0]), -chunk[1], -seen(chunk[0]))):
        padding += group[0][1] - count if group else 0
        if group and (
            part(group[0][0]) != part(text) or padding > PADDING or abs(seen(group[0][0]) - seen(text)) > DISTANCE
        ):
            yield group
            group, padding = [], 0
        group.append((text, count))
    if group:
        yield group
