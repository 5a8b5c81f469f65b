"""Values that make any recipe a run of seconds on a tiny model."""

import json
from pathlib import Path

from tiny import save_numbers

CLUSTERS = {"adding": "Sums", "counting": "Sums", "parity": "Classes"}  # of the tasks of a small suite


def small_values(model: str, suite: Path, **more: object) -> list[str]:
    """Eight steps of the bundled recipes on some numbers."""
    values = {
        "backbone.name": model, "backbone.dtype": "float32", "suite.source": suite, "scaffold.length": 4,
        "training.steps": 8, "training.batch_size": 4, "training.evaluate_every": 0, "training.save_every": 0,
        "development.limit": 4, "development.longest": 4, "test.limit": 6, "test.longest": 4, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def save_suite(folder: Path, clusters: dict[str, str]) -> Path:
    """Tasks of the given names, each in its cluster, each with answers of its own."""
    for number, (name, cluster) in enumerate(clusters.items()):
        start = 100 * number
        parts = [range(start, start + 40), range(start + 40, start + 50), range(start + 50, start + 62)]
        task = save_numbers(folder / name, *parts)
        (task / "card.json").write_text(json.dumps({"name": name, "cluster": cluster}))
        templates = (task / "templates.yaml").read_text()
        (task / "templates.yaml").write_text(templates.replace("even ||| odd", f"{name} even ||| {name} odd"))
    return folder
