"""Whatever is broken in a folder is told in one line that names it, and what else is served goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoulders.errors import UsageError
from shoulders.serving.http import ApiError
from shoulders.serving.models import Models

KINDS = ("prefix", "input", "deep", "lora", "twice", "reader", "textual", "cascade", "reranker", "tower")
WRONG = (None, -1, "x", [], {}, 1e30, True)


def broken_tensors(path):
    """Write one fault after the other into a file of tensors; yield what was done."""
    tensors = load_file(path)
    for fault in (torch.nan, torch.inf):
        for name, tensor in list(tensors.items())[:3]:
            if tensor.is_floating_point():
                bad = tensor.clone()
                bad.view(-1)[-1] = fault
                save_file({**tensors, name: bad}, path)
                yield f"{name} with {fault}"
    for name in list(tensors)[:3]:
        save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
        yield f"without {name}"
        save_file({**tensors, name: torch.zeros(*(size + 1 for size in tensors[name].shape))}, path)
        yield f"{name} larger"


def broken_json(path):
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        return
    for name in content:
        path.write_text(json.dumps({other: value for other, value in content.items() if other != name}))
        yield f"without {name}"
        for value in WRONG:
            path.write_text(json.dumps({**content, name: value}))
            yield f"{name} is {value!r}"


def broken_bytes(path):
    content = path.read_bytes()
    for what, bad in {
        "empty": b"", "half": content[: len(content) // 2], "garbage": b"\xff\x00{" * 20,
        "a list": b"[1]", "deep": b"[" * 100_000,
    }.items():  # fmt: skip
        path.write_bytes(bad)
        yield what
    path.unlink()
    yield "deleted"
    path.mkdir()
    yield "a folder"
    path.rmdir()


def faults(folder):
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        kept = path.read_bytes()
        kinds = {".safetensors": [broken_tensors], ".json": [broken_json]}.get(path.suffix, [])
        for kind in [*kinds, broken_bytes]:
            for what in kind(path):
                yield f"{path.relative_to(folder)}: {what}"
            if not path.parent.exists():
                path.parent.mkdir()
            path.write_bytes(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_fuzz(lm, saved, tmp_path, kind):
    folder = tmp_path / kind
    shutil.copytree(saved / kind, folder)
    models = Models(lm)
    role = {"tower": "retriever"}.get(kind, "")
    fine, bad = [], []
    count = 0
    for what in faults(folder):
        count += 1
        try:
            models.add("x", str(folder), role=role, replacing=True)
            fine.append(what)
        except (UsageError, ApiError) as error:
            told = str(error)
            if "\n" in told: bad.append((what, "LINES", told[:200]))
        except Exception as error:
            bad.append((what, type(error).__name__, str(error)[:150]))
    print(kind, count, "fine", len(fine), "bad", len(bad))
    for one in bad: print("   BAD", one)
    for one in fine: print("   fine", one)
