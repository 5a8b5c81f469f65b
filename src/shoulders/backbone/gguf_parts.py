"""Models that are split into several GGUF files: `NAME-00001-of-00003.gguf` and so on, as llama.cpp writes them."""

import re
from collections.abc import Sequence
from pathlib import Path

from shoulders.backbone.loading import hub_errors
from shoulders.errors import CorruptFile

PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
OF_THE_FILE = ("GGUF.", "split.", "general.architecture")  # entries that are the writer's, or one part's


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split GGUF file, given that of one; of a whole file, its own."""
    found = PART.search(name)
    if not found:
        return [name]
    return [f"{name[: found.start()]}-{number:05}-of-{found[1]}.gguf" for number in range(1, int(found[1]) + 1)]


def join(parts: Sequence[Path], target: Path) -> Path:
    """Write all tensors of the parts into one GGUF file, with what the first says about the model.

    Raises:
        SourceNotFound: a part is no GGUF file.
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
