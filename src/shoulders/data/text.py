"""Plain text for language modelling: documents of files or a hub data set, packed into sequences of one length."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from jaxtyping import Int
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import hub_errors
from shoulders.data.mixture import permuted
from shoulders.data.readers import datasets_library
from shoulders.errors import DataError, SourceNotFound
from shoulders.records import Batch, LMInput

PLAIN = (".txt", ".md")
LINES = (".jsonl", ".jsonl.gz")
OFFSETS = 1 << 32  # a position is the place of a document and an offset in it, as one number


def open_text(source: str) -> list[str]:
    """The documents of a text file, of a JSONL file's `text` fields, of a folder of both, or of `hub:NAME[:CONFIG]`.

    Raises:
        SourceNotFound, HubUnreachable: there is nothing by that name.
        DataError: a line is broken, or there is no text at all.
    """
    if source.startswith("hub:"):
        name, _, config = source.removeprefix("hub:").partition(":")
        with hub_errors(name):
            rows = datasets_library().load_dataset(name, config or None, split="train")
        found = [str(text) for text in rows["text"] if text.strip()]
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise SourceNotFound(f"there is no text at {source!r}: name a file, a folder, or hub:NAME")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = [text for file in files if file.name.endswith(PLAIN + LINES) for text in _texts(file) if text.strip()]
    if not found:
        raise DataError(
            f"{source!r} holds no text ({', '.join(PLAIN)} files, or {', '.join(LINES)} with a `text` field)"
        )
    return found


def _texts(file: Path) -> Iterator[str]:
    if file.name.endswith(PLAIN):
        yield file.read_text(encoding="utf-8", errors="replace")
        return
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}, line {number} is no JSON object with a `text` field: {error!r}") from error


def held_out(documents: Sequence[str], one_in: int) -> tuple[list[str], list[str]]:
    """Documents to train on, and one in so many to measure on."""
    if len(documents) < 2:
        raise DataError("one document cannot be divided into training and development: name text.validation")
    rest = [text for number, text in enumerate(documents) if number % one_in]
    return rest, [text for number, text in enumerate(documents) if number % one_in == 0]


def text_batch(ids: Int[Tensor, "B T"], lm: FrozenLM) -> Batch:
    """Sequences whose every next token is to be predicted, T - 1 of each."""
    ids = ids.to(lm.device)
    return Batch(LMInput(lm.embed(ids[:, :-1]), None, (0,) * len(ids)), ids[:, 1:])


@final
class PackedText:
    """An endless stream of token sequences of one length, without padding, addressed by position.

    Documents follow each other in an order shuffled anew in every epoch, each ended by the end token; sequences are cut
    wherever they are full. A position leads to its sequence at once, so a resumed run goes on exactly where it was.
    """

    def __init__(self, documents: Sequence[str], lm: FrozenLM, length: int, seed: int) -> None:
        if length < 2:
            raise DataError(f"text.length is {length}: a sequence has at least 2 tokens")
        lm.check_room("a sequence of text", length, "lower text.length")
        self.documents, self.lm, self.length, self.seed = documents, lm, length, seed
        self.position = 0
        self._read: tuple[int, list[int]] = (-1, [])  # the document that was tokenised last

    def take(self) -> list[int]:
        """The next sequence."""
        place, offset = divmod(self.position, OFFSETS)
        ids: list[int] = []
        while len(ids) < self.length:
            tokens = self._tokens(place)
            part = tokens[offset : offset + self.length - len(ids)]
            ids += part
            offset += len(part)
            if offset == len(tokens):
                place, offset = place + 1, 0
        self.position = place * OFFSETS + offset
        return ids

    def _tokens(self, place: int) -> list[int]:
        if self._read[0] != place:
            epoch, number = divmod(place, len(self.documents))
            document = permuted(number, len(self.documents), f"{self.seed}/text/{epoch}")
            self._read = place, [*self.lm.ids(self.documents[document]), self.lm.end]
        return self._read[1]
