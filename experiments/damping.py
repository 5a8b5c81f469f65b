"""Measure blocks of layers that run again, without any training: perplexity of held-out text.

    python -m experiments.damping experiments/016-recursion/damped/grid.json

The grid names a text and the shapes: the layers that run again and how far they move their own output.
Each shape is compared with one pass, paired over sequences. Shapes that have their result are not measured again.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from shoulders.backbone.frozen import FrozenLM
from shoulders.evaluation.perplexity import perplexity, token_changes
from shoulders.evaluation.results import provenance
from shoulders.runs.build import load_backbone
from shoulders.runs.jobs import measured_sequences, text_parts
from shoulders.runs.recipe import Recipe, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.store.files import read_json, write_json

RESAMPLED = 2_000  # draws of the bootstrap


def main(file: Path) -> None:
    """Measure the shapes of a grid that have no result yet, then write the table."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    grid = json.loads(file.read_text(encoding="utf-8"))
    recipe = with_overrides(recipe_named("text_recursion"), grid["common"])
    lm = load_backbone(recipe.backbone)
    sequences = measured_sequences(recipe, lm, text_parts(recipe)[1])
    found: dict[str, Mapping[str, Any]] = {}
    for name, values in {"one-pass": {"passes": 1}, **grid["shapes"]}.items():
        path = file.parent / "results" / f"{name}.json"
        if not path.exists():
            write_json(path, _measured(recipe, lm, RecursionShape(layers=0, **values), sequences))
        found[name] = read_json(path)
        print(f"{name}: {found[name]['perplexity']:.2f}", flush=True)
    (file.parent / "summary.md").write_text(_table(found), encoding="utf-8")


def _measured(recipe: Recipe, lm: FrozenLM, shape: RecursionShape, sequences: Sequence[list[int]]) -> dict[str, Any]:
    scaffold = Recursion(lm, shape)
    each = [perplexity(lm, scaffold, [sequence]) for sequence in sequences]
    nats, tokens = sum(one.nats for one in each), sum(one.tokens for one in each)
    return {
        "shape": asdict(shape),
        "perplexity": float(np.exp(nats / tokens)),
        "tokens": tokens,
        "nats": [one.nats for one in each],
        "by_token": [asdict(one) for one in token_changes(lm, Bare(), scaffold, sequences)],
        "layers": sum(end - begin for begin, end in shape.sections(lm.config.num_hidden_layers)),
        **provenance(recipe.as_json(), lm),
    }


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    base = found["one-pass"]
    lines = [
        "| shape | layers run | perplexity | nats a token over one pass (95% interval over sequences) |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, one in found.items():
        gaps = (np.array(one["nats"]) - np.array(base["nats"])) * len(base["nats"]) / base["tokens"]
        draws = np.random.default_rng(0).choice(gaps, (RESAMPLED, len(gaps))).mean(1)
        low, high = np.percentile(draws, [2.5, 97.5])
        gap = "" if one is base else f"{gaps.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"| {name} | {one['layers']} | **{one['perplexity']:.2f}** | {gap} |")
    return "\n".join([*lines, f"\n{base['tokens']:,} held-out tokens, no training. torch {torch.__version__}.\n"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
