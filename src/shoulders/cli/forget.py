"""`shoulders forget`."""

from collections.abc import Sequence
from pathlib import Path

from shoulders.cli.common import load_both, recipe_of, weights_of
from shoulders.cli.show import console, quiet_libraries
from shoulders.data.text import open_text
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.files import write_json
from shoulders.recipes.folders import scaffold_folder
from shoulders.recipes.forgetting import Forgetting, forgetting
from shoulders.recipes.jobs import measured_sequences
from shoulders.recipes.recipe import with_overrides
from shoulders.recipes.rivals import load_rival, read_rival, rival_folder, rival_measured


def run(name: str, text: str, overrides: Sequence[str], out: Path | None) -> None:
    """Measure perplexity on a text before and after a run."""
    quiet_libraries()
    documents = open_text(text)
    if folder := rival_folder(name):
        stored = read_rival(folder)
        recipe = with_overrides(stored.recipe, overrides)
        lm = weights_of(recipe.backbone)
        rival = load_rival(stored, recipe, lm)
        adapted, scaffold, about = rival.lm, rival.scaffold, rival_measured(stored, rival)
    else:
        name = scaffold_folder(name)
        recipe = recipe_of(name, None, overrides)
        lm, scaffold = load_both(name, recipe)
        adapted, about = lm, {"scaffold": scaffold_measured(scaffold, name)}
    found = forgetting(lm, adapted, scaffold, measured_sequences(recipe, lm, documents))
    _tell(found)
    if out:
        write_json(out, {**found.as_json(), "text": text, **about, **provenance(recipe.as_json(), lm)})
        console.print(f"written to {out}")


def _tell(found: Forgetting) -> None:
    before, after = found.before.perplexity, found.after.perplexity
    told = "no bit of the model has moved" if found.unchanged else f"{100 * (found.ratio - 1):+.1f}%"
    console.print(f"perplexity on {found.before.tokens:,} tokens: before {before:.2f}, after {after:.2f} ({told})")
    if found.attached:
        console.print(f"read through the scaffold: {found.attached.perplexity:.2f}")
