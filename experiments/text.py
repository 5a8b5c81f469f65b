"""Run a grid of language-modelling recipes, resumable, and compare perplexities.

    python -m experiments.text experiments/008-language-modelling/grid.json [--only NAME]

Like `experiments.sweep`, for recipes with `text.source`: each run writes `results/NAME.json` beside the grid file, the
table goes to `summary.md`, and run folders to `runs/` (not in git).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.sweep import Run, run_grid, trained_scaffold, training_of, write_summary
from shoulders.backbone.frozen import FrozenLM
from shoulders.runs.jobs import measure_text
from shoulders.runs.run import text_result
from shoulders.store.files import read_json
from shoulders.training.log import read_log


def main() -> None:
    """Run the cells that have no result yet, then write the summary."""
    folder, kept = run_grid(_measured)
    write_summary(folder, summary([(run, read_json(path)) for run, path in kept]))


def _measured(run: Run, lm: FrozenLM, folder: Path) -> dict[str, Any]:
    scaffold, told = trained_scaffold(run, lm, folder, [])
    content = text_result(run.recipe, lm, scaffold, measure_text(run.recipe, lm, scaffold), run.name)
    content |= {**told, "training": training_of(read_log(folder))}
    print(f"{run.name}: {content['perplexity']:.2f}", flush=True)
    return content


def summary(found: Sequence[tuple[Run, Mapping[str, Any]]], columns: int = 5) -> str:
    """Return a table of perplexity on the held-out text, and of training loss by fifths of the training."""
    lines = [
        "| run | trained | tokens seen | perplexity | bits per byte | loss by fifths of the training |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for run, content in found:
        losses = content["training"]["losses"]
        size = math.ceil(len(losses) / columns) or 1
        parts = [losses[start : start + size] for start in range(0, len(losses), size)]
        lines.append(
            f"| {run.name} | {content['trained']:,} | {content['training']['positions']:,} | "
            f"**{content['perplexity']:.2f}** | {content['bits_per_byte']:.4f} | "
            f"{' '.join(f'{sum(part) / len(part):.3f}' for part in parts)} |"
        )
    tokens = found[0][1]["tokens"] if found else 0
    return "\n".join([*lines, f"\n{tokens:,} held-out tokens, the same for all runs. torch {torch.__version__}.\n"])


if __name__ == "__main__":
    main()
