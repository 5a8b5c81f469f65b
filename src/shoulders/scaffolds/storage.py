"""A scaffold on disk: a folder with the trained weights (safetensors) and what they are (JSON). Never a pickle."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import hub_errors
from shoulders.errors import CorruptFile, SourceNotFound, WrongBackbone
from shoulders.files import read_json, read_tensors, recovered, write_json, write_tensors

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1

MODEL_CARD = """---
{{ card_data }}
---
# A {{ kind }} for `{{ backbone }}`

Trained parameters around a frozen language model ([shoulders]({{ repo_url }})). The language model itself is not in
here and was not changed: its fingerprint is `{{ fingerprint }}`.

```python
from shoulders import FrozenLM, Question, Scaffold, answer

lm = FrozenLM.load("{{ backbone }}")
scaffold = Scaffold.load("THIS_REPOSITORY", lm)
print(answer([Question("...")], lm, scaffold))
```

Trained parameters: {{ parameters }}. Scores and the whole recipe are in `config.json`.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a scaffold comes from and what it fits.

    Attributes:
        backbone: name of the language model it was trained around.
        fingerprint: of that model's weights.
        width: D of that model.
        recipe: the whole recipe of the run, if there was one.
        scores: what was measured, if anything was.
    """

    backbone: str
    fingerprint: str
    width: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def check(self, lm: FrozenLM) -> None:
        """Raise `WrongBackbone` unless `lm` is the model that the scaffold was trained around."""
        if lm.width != self.width:
            raise WrongBackbone(
                f"the scaffold was trained around {self.backbone!r} of width {self.width}; {lm.name!r} has width "
                f"{lm.width}: load the backbone it was trained around"
            )
        found = lm.fingerprint()
        if found != self.fingerprint:
            raise WrongBackbone(
                f"the scaffold was trained around {self.backbone!r} (fingerprint {self.fingerprint[:12]}); {lm.name!r} "
                f"has other weights (fingerprint {found[:12]}): load the backbone it was trained around"
            )


@dataclass(frozen=True, slots=True)
class Stored:
    """A scaffold as read from disk."""

    kind: str
    description: Mapping[str, Any]
    origin: Origin
    weights: Mapping[str, Tensor]


def write_files(folder: Path, stored: Stored) -> None:
    """Weights and configuration into a folder."""
    origin = stored.origin
    write_tensors(folder / WEIGHTS, stored.weights)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "kind": stored.kind,
            "description": dict(stored.description),
            "backbone": {"name": origin.backbone, "fingerprint": origin.fingerprint, "width": origin.width},
            "recipe": dict(origin.recipe),
            "scores": dict(origin.scores),
            "versions": versions(),
        },
    )


def read_files(folder: Path) -> Stored:
    """What `write_files` wrote.

    Raises:
        SourceNotFound: there is no scaffold in the folder.
        CorruptFile: a file is truncated, broken, or of a newer format.
    """
    folder = recovered(folder)
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no scaffold in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    try:
        if config["format"] > FORMAT:
            raise CorruptFile(
                f"{folder} has format {config['format']}, this version reads up to {FORMAT}: update shoulders"
            )
        backbone = config["backbone"]
        origin = Origin(
            backbone["name"], backbone["fingerprint"], backbone["width"], config["recipe"], config["scores"]
        )
        return Stored(config["kind"], config["description"], origin, read_tensors(folder / WEIGHTS))
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{folder / CONFIG} is not a scaffold's configuration: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Fetching:
    """How a scaffold is fetched from the hub: huggingface_hub's own arguments."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


def fetch(name: str | Path, how: Fetching | None = None) -> Path:
    """The folder of a scaffold named by path or hub repository.

    Raises:
        SourceNotFound, HubUnreachable: it is not there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or recovered(folder).is_dir():
        return folder
    if str(name).startswith(("/", ".", "~")) or str(name).count("/") != 1:
        raise SourceNotFound(f"there is no scaffold folder {str(name)!r}")
    with hub_errors(str(name)):
        options = asdict(how or Fetching())
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS], **options))


def read_origin(name: str | Path) -> Origin:
    """What a scaffold, named by path or hub repository, was trained around."""
    return read_files(fetch(name)).origin


def versions() -> dict[str, str]:
    """Of the libraries that results depend on."""
    return {
        "shoulders": importlib.metadata.version("shoulders"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
