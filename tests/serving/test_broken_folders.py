"""Whatever is broken in a folder is told in one line that names it, and what else is served goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoulders.errors import UsageError
from shoulders.serving.http import ApiError
from shoulders.serving.models import Models

VALUES = (None, -1, "x", [], {}, 1e30, True)
BYTES = {"garbage": b"\xff\x00{" * 20, "nested": b"[" * 100_000}


def broken_bytes(path: Path) -> Iterator[str]:
    """Break a file in one way after the other; yield what was done."""
    content = path.read_bytes()
    for what, broken in {**BYTES, "half": content[: len(content) // 2]}.items():
        path.write_bytes(broken)
        yield what
    path.unlink()
    yield "deleted"
    path.mkdir()
    yield "a folder"
    path.rmdir()


def broken_tensors(path: Path) -> Iterator[str]:
    tensors = load_file(path)
    name = max(tensors, key=lambda one: tensors[one].numel())
    if not tensors[name].is_floating_point():
        return
    for value in (torch.nan, torch.inf):
        save_file({**tensors, name: torch.full_like(tensors[name], value)}, path)
        yield f"weights {value}"
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
    yield f"weights without {name}"
    save_file({**tensors, name: torch.zeros(*(size + 1 for size in tensors[name].shape))}, path)
    yield f"weights with a larger {name}"


def broken_values(path: Path) -> Iterator[str]:
    content = json.loads(path.read_text())
    for name in content if isinstance(content, dict) else ():
        path.write_text(json.dumps({other: value for other, value in content.items() if other != name}))
        yield f"without {name}"
        for value in VALUES:
            path.write_text(json.dumps({**content, name: value}))
            yield f"{name} is {value!r}"


def faults(folder: Path, *, values: bool) -> Iterator[str]:
    """Break every file of a folder in every way, and mend it again; yield what is broken."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        kept = path.read_bytes()
        ways = [broken_bytes, *([broken_tensors] if path.suffix == ".safetensors" and load_file(path) else [])]
        for way in [*ways, *([broken_values] if values and path.suffix == ".json" else [])]:
            for what in way(path):
                yield f"{path.name}: {what}"
            path.write_bytes(kept)


def told_of(models: Models, folder: Path, role: str) -> str:
    """Why a folder is not served; empty if it is. Any other exception would end the server at its start."""
    try:
        models.add("broken", str(folder), role=role, replacing=True)
    except (UsageError, ApiError) as error:
        return str(error)
    return ""


def check(lm, saved, place, kind, *, values):
    folder, role = place / kind, "retriever" if kind == "tower" else ""
    shutil.copytree(saved / kind, folder)
    if kind == "cascade":  # which names its stage beside it
        shutil.copytree(saved / "twice", place / "twice")
    models, refused = Models(lm), {}
    for what in faults(folder, values=values):
        told = told_of(models, folder, role)
        assert "\n" not in told, what
        assert not told or str(place) in told, (what, told)
        refused[what] = bool(told)
    assert not told_of(models, folder, role)  # mended
    return refused


@pytest.mark.parametrize("kind", ["prefix", "twice", "lora", "cascade", "reranker", "tower"])
def test_broken_files_are_told(lm, saved, tmp_path, kind):
    refused = check(lm, saved, tmp_path, kind, values=False)
    assert any(told for what, told in refused.items() if what.endswith(".json: garbage"))
    weights = {what: told for what, told in refused.items() if ": weights " in what or "safetensors: half" in what}
    assert all(weights.values()), weights
    assert weights or kind == "cascade"  # which has no weights of its own


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["prefix", "input", "deep", "lora", "twice", "reader", "textual", "cascade", "tower"])
def test_broken_values_are_told(lm, saved, tmp_path, kind):
    assert sum(check(lm, saved, tmp_path, kind, values=True).values()) > 10


def test_a_stage_that_was_broken_meanwhile_is_refused(lm, saved, tmp_path):
    folder, stage = tmp_path / "cascade", tmp_path / "twice"
    shutil.copytree(saved / "cascade", folder)
    shutil.copytree(saved / "twice", stage)
    models = Models(lm)
    assert not told_of(models, folder, "")
    (weights,) = stage.glob("*.safetensors")
    save_file({name: torch.full_like(one, torch.nan) for name, one in load_file(weights).items()}, weights)
    assert "stage 2 of" in told_of(models, folder, "")  # it is not the one that the cascade was calibrated with
