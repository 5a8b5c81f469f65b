"""Scaffolds on disk: a folder with the trained weights (safetensors) and their description (JSON); never a pickle."""

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, SourceNotFound, WrongBackbone
from shoulders.store.files import BEST, hub_errors, read_json, read_tensors, recover_folder, write_json, write_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 2
OBJECTS = ("description", "backbone", "recipe", "scores", "answering")  # in the configuration

MODEL_CARD = """---
{{ card_data }}
---
# A {{ kind }} for `{{ backbone }}`

Trained parameters around a frozen language model ([shoulders]({{ repo_url }})). The language model itself is not in
this repository and was not changed: its fingerprint is `{{ fingerprint }}`.

```python
import shoulders

print(shoulders.open("THIS_REPOSITORY").ask("...").text)
```

Trained parameters: {{ parameters }}. Scores and the whole recipe are in `config.json`.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """The backbone of a trained scaffold, and how it was trained, measured and is asked.

    Attributes:
        backbone: name of the language model that it was trained around.
        fingerprint: fingerprint of that model's weights.
        width: D of that model.
        recipe: the whole recipe of the run; empty without one.
        scores: measured scores; empty without any.
        answering: how to ask it (`shoulders.answering.AnswerSpec`); empty if nothing was said.
        quantized: scheme of the model's weights; empty if they were not quantised.
    """

    backbone: str
    fingerprint: str
    width: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    answering: Mapping[str, Any] = field(default_factory=dict)
    quantized: str = ""

    def check(self, lm: FrozenLM) -> None:
        """Raise `WrongBackbone` unless `lm` is the model that the scaffold was trained around.

        The same model with weights that are quantised otherwise is noted in a Python warning.
        """
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
        if lm.quantized != self.quantized:
            there, here = (f"quantised as {one}" if one else "not quantised" for one in (self.quantized, lm.quantized))
            warnings.warn(
                f"the weights of {self.backbone!r} were {there} in training and are {here} now: answers may differ",
                stacklevel=3,
            )


@dataclass(frozen=True, slots=True)
class SavedScaffold:
    """The contents of a scaffold's folder."""

    kind: str
    description: Mapping[str, Any]
    origin: Origin
    weights: Mapping[str, Tensor]


def write_files(folder: Path, stored: SavedScaffold) -> None:
    """Write weights and configuration into a folder."""
    origin = stored.origin
    write_tensors(folder / WEIGHTS, stored.weights)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "kind": stored.kind,
            "description": dict(stored.description),
            "backbone": {
                "name": origin.backbone,
                "fingerprint": origin.fingerprint,
                "width": origin.width,
                **({"quantized": origin.quantized} if origin.quantized else {}),
            },
            "recipe": dict(origin.recipe),
            "scores": dict(origin.scores),
            "answering": dict(origin.answering),
            "versions": versions(),
        },
    )


def read_files(folder: Path) -> SavedScaffold:
    """Read the files that `write_files` wrote.

    Raises:
        SourceNotFound: there is no scaffold in the folder.
        CorruptFile: a file is truncated, broken, or of another format.
    """
    config, origin = _read_config(folder)
    try:
        return SavedScaffold(
            config["kind"], config["description"], origin, read_tensors(recover_folder(folder) / WEIGHTS)
        )
    except KeyError as error:
        raise _not_a_configuration(folder, error) from error


def _read_config(folder: Path) -> tuple[Mapping[str, Any], Origin]:
    """Read the configuration in a scaffold's folder and the origin in it, without the weights."""
    folder = recover_folder(folder)
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no scaffold in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        raise SourceNotFound(
            f"{folder} holds a model and no scaffold: shoulders ask bare --backbone {folder} (in Python "
            f"shoulders.open('bare', backbone={str(folder)!r}))"
        )
    try:
        if config["format"] != FORMAT:
            way_out = "update shoulders" if config["format"] > FORMAT else "train it anew (shoulders train)"
            raise CorruptFile(f"{folder} has format {config['format']}, this version reads {FORMAT}: {way_out}")
        if not isinstance(config["kind"], str):
            raise TypeError("kind is no text")
        for name in OBJECTS:
            if not isinstance(config[name], dict):
                raise TypeError(f"{name} is no object")
        backbone = config["backbone"]
        return config, Origin(
            backbone["name"],
            backbone["fingerprint"],
            backbone["width"],
            **{name: config[name] for name in ("recipe", "scores", "answering")},
            quantized=backbone.get("quantized", ""),
        )
    except (KeyError, TypeError) as error:
        raise _not_a_configuration(folder, error) from error


def _not_a_configuration(folder: Path, error: Exception) -> CorruptFile:
    return CorruptFile(f"{folder / CONFIG} is not a scaffold's configuration: {error!r}")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Options for fetching a scaffold from the hub: huggingface_hub's own arguments."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


def fetch(name: str | Path, how: HubOptions | None = None, files: Sequence[str] = (CONFIG, WEIGHTS)) -> Path:
    """Return the folder of a scaffold named by path or hub repository, which is fetched.

    Args:
        name: path or hub repository.
        how: options for the hub.
        files: the files to fetch from the hub.

    Raises:
        SourceNotFound, HubUnreachable: it is not there, or the hub does not answer.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or recover_folder(folder).is_dir():
        return folder
    if folder.is_file():
        raise SourceNotFound(f"{str(name)!r} is a file, and a scaffold is a folder: name the folder")
    if str(name).startswith(("/", ".", "~")) or str(name).count("/") != 1:
        raise SourceNotFound(f"there is no scaffold folder {str(name)!r}")
    with hub_errors(str(name)):
        options = asdict(how or HubOptions())
        return Path(snapshot_download(str(name), allow_patterns=list(files), **options))


def read_origin(name: str | Path) -> Origin:
    """Read the origin of a scaffold named by path or hub repository, without its weights."""
    return _read_config(fetch(name, files=[CONFIG]))[1]


def scaffold_folder(name: str) -> str:
    """Return the folder of the best scaffold for the folder of a run; any other name unchanged."""
    folder = Path(name).expanduser()
    if (folder / CONFIG).exists():
        return name
    inner = recover_folder(folder / BEST)
    return str(inner) if (inner / CONFIG).exists() else name


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    return {
        "shoulders": importlib.metadata.version("shoulders"),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
    }
