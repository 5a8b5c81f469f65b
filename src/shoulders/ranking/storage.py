"""A re-ranker on disk: an encoder as transformers saves it, and beside it heads, description and questions seen.

config.json, model.safetensors, tokenizer.json ...   the encoder
heads.safetensors                                    span and relevance
seen.safetensors                                     hashes of the questions that it was trained on
reranker.json                                        format, version, encoder, length, recipe, scores; written last
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shoulders.errors import CorruptFile, SourceNotFound
from shoulders.files import (
    BEST,
    check_format,
    read_json,
    read_tensors,
    recovered,
    whole_folder,
    write_json,
    write_tensors,
)
from shoulders.ranking.seen import Seen
from shoulders.ranking.towers import Tower

DESCRIPTION, HEADS, SEEN = "reranker.json", "heads.safetensors", "seen.safetensors"
FORMAT, VERSION = "shoulders-reranker", 1
QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class About:
    """Where a re-ranker comes from.

    Attributes:
        encoder: the pretrained encoder that it was started from.
        recipe: of the training, if there was one.
        measured: what was measured, if anything was.
        seen: the questions that it was trained on.
    """

    encoder: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True, slots=True)
class Stored:
    """A re-ranker's files beside its encoder, as read."""

    about: About
    length: int
    heads: Mapping[str, Tensor]


def write_reranker(folder: Path, tower: Tower, stored: Stored) -> None:
    """All files of a re-ranker, in place only when they are whole.

    Raises:
        SaveFailed: the place cannot be written, or holds something else.
    """
    about = stored.about
    with whole_folder(folder, DESCRIPTION) as scratch:
        tower.save(scratch)
        write_tensors(scratch / HEADS, stored.heads)
        write_tensors(scratch / SEEN, {QUESTIONS: about.seen.tensor()})
        write_json(
            scratch / DESCRIPTION,
            {
                "format": FORMAT,
                "version": VERSION,
                "encoder": about.encoder,
                "length": stored.length,
                "recipe": dict(about.recipe),
                "measured": dict(about.measured),
            },
        )


def model_folder(folder: Path) -> Path:
    """Where a re-ranker lies: a run's folder stands for its best."""
    inner = recovered(folder / BEST)
    return inner if (inner / DESCRIPTION).exists() else folder


def is_reranker(folder: Path) -> bool:
    """Return whether a folder holds a re-ranker, or a run that trained one."""
    return (model_folder(folder.expanduser()) / DESCRIPTION).exists()


def read_reranker(folder: Path) -> Stored:
    """What `write_reranker` wrote beside the encoder.

    Raises:
        SourceNotFound: there is no re-ranker in the folder.
        UsageError: it is of another format.
        CorruptFile: a file is missing, truncated or broken.
    """
    folder = recovered(folder)
    if not (folder / DESCRIPTION).exists():
        raise SourceNotFound(f"there is no re-ranker in {folder}: {DESCRIPTION} is missing")
    content = read_json(folder / DESCRIPTION)
    check_format(content, (FORMAT, VERSION), folder, "train the re-ranker again, or use the version that wrote it")
    try:
        seen = Seen.from_tensor(read_tensors(folder / SEEN)[QUESTIONS])
        about = About(content["encoder"], content["recipe"], content["measured"], seen)
        return Stored(about, int(content["length"]), read_tensors(folder / HEADS))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{folder / DESCRIPTION} is not a re-ranker's description: {error!r}") from error
