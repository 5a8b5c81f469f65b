"""A file of answers that a model sampled, as far as a report reads it: how many tries a right answer takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoulders.data.matching import NEVER
from shoulders.errors import CorruptFile, first_line
from shoulders.evaluation.recall import SAMPLES
from shoulders.evaluation.results import Result
from shoulders.files import read_json

KEYS = {"recipe", "examples", "examples_hash", "split", "recall", "wordings"}


@dataclass(frozen=True, slots=True)
class Samples:
    """What was sampled under one prompt (the paper, section 4.1).

    Attributes:
        name: as printed.
        content: of the file.
        recall: percent of the questions with a right answer among the first so many samples.
        first: by task and wording, for each example the number of its first right sample, or `NEVER`.
    """

    name: str
    content: Mapping[str, Any]
    recall: Mapping[int, float]
    first: Mapping[tuple[str, str], Sequence[int]]

    @property
    def most(self) -> int:
        """Samples of a question."""
        return max(self.recall)

    def unanswered(self, result: Result) -> list[list[bool]] | None:
        """For each wording and example of a result, whether no sample answers it; None if others were sampled for.

        Raises:
            CorruptFile: the file names the same examples and does not hold them.
        """
        if result.content.get("examples_hash") != self.content["examples_hash"]:
            return None
        found = []
        for row in result.content["wordings"]:
            first = self.first.get((row["task"], row["wording"]), ())
            if len(first) != len(row["measured"]):
                raise CorruptFile(
                    f"the samples {self.name} hold {len(first)} examples of {row['task']}/{row['wording']}, the "
                    f"results {result.name} {len(row['measured'])}, though both name the same: sample them again"
                )
            found.append([number == NEVER for number in first])
        return found


def read_samples(path: Path, name: str) -> Samples | None:
    """The samples in a file; None for a folder or a file of another kind, or none at all.

    Raises:
        CorruptFile: the file says that it holds samples and lacks some of what they are.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("kind") != SAMPLES:
        return None
    if missing := KEYS - set(content):
        raise CorruptFile(f"{path} holds no samples of shoulders: it lacks {', '.join(sorted(missing))}")
    try:
        recall = {int(count): float(percent) for count, percent in content["recall"].items()}
        first = {(row["task"], row["wording"]): [int(number) for number in row["first"]] for row in content["wordings"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"{path} holds no samples of shoulders: `recall` or `wordings` is broken ({first_line(error)})"
        ) from error
    if not recall:
        raise CorruptFile(f"{path} holds no samples of shoulders: `recall` is empty")
    return Samples(name, content, recall, first)
