"""`shoulders train` and `shoulders sweep`: commands that train, and measure the best result."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from shoulders.cli.common import Overrides, RecipeName, Rival, SkipBadRows, find_recipe, weights_of, with_flags
from shoulders.cli.show import console, counting, inform, need, quiet_libraries, titled
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.evidence.base import Evidence
    from shoulders.runs.build import TaskParts
    from shoulders.runs.recipe import Recipe
    from shoulders.runs.run import Watch
    from shoulders.runs.sweep import Candidate, Grid
    from shoulders.training.loop import Progress


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run [default: runs/RECIPE]")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in the folder")] = False,
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit",
            help="for a re-ranker: train one on each half of the questions and one on all of them, so that a reader's "
            "training questions are ranked by one that was not trained on them",
        ),
    ] = False,
    rival: Rival = "",
    skip_bad_rows: SkipBadRows = False,
    index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INDEX|FILE",
            help="for a cartridge: the index whose passages the model studies, or files and folders to index first "
            "(repeat it for several)",
        ),
    ] = None,
) -> None:
    """Train a recipe's scaffold (or retriever, or re-ranker), and measure the best one on the test part.

    The folder gets recipe.json, log.jsonl, TensorBoard curves, checkpoints, the best scaffold (`best/`) and
    results.json. A run that was interrupted goes on exactly from its last checkpoint: the same command with `--resume`.

    Several processes share the steps: `accelerate launch -m shoulders train ...` on GPUs, and on CPUs
    `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m shoulders train ...`. With `backbone.parallel=fsdp` (or
    `tensor`) they share the frozen weights, too.

    Example: `shoulders train bundled_soft_prompt training.steps=200 --out runs/first`
    """
    from shoulders.answering.models import FID
    from shoulders.runs.build import as_asked
    from shoulders.runs.jobs import check_tested, split_tasks

    values = with_flags(overrides, skip_bad_rows=skip_bad_rows)
    if _is_ranking(recipe):
        if index:
            raise UsageError(f"{recipe} studies no index: leave --index out, and set index=FOLDER")
        if rival:
            raise UsageError(f"{recipe} orders passages and has no rival: leave --rival out")
        _train_ranking(recipe, values, out, resume=resume, cross_fit=cross_fit)
        return
    if cross_fit:
        raise UsageError(f"{recipe} has no re-ranker to cross-fit: shoulders train reranker --cross-fit")
    quiet_libraries()
    plan = find_recipe(recipe, _with_rival(values, rival))
    plan = as_asked(plan, plan.scaffold.start)
    plan.check_trainable()
    folder = out or _default_folder(plan)
    plan = _with_index(plan, index, folder) if index else plan
    if plan.rival.kind == FID:
        _fid_run(plan, folder, resume=resume)
        return
    lm = weights_of(plan.backbone)
    plan = _studied(plan, lm, folder)
    parts = split_tasks(plan)
    check_tested(plan, lm, parts)
    _train_and_measure(plan, lm, parts, folder, resume=resume)


def _with_index(recipe: "Recipe", sources: list[str], folder: Path) -> "Recipe":
    """Return a recipe of self-study with its index, which is built in the run's folder unless the source is one."""
    from accelerate import PartialState

    from shoulders.cli.corpus import index as build
    from shoulders.runs.recipe import SELF_STUDY

    if recipe.suite.source != SELF_STUDY:
        raise UsageError(
            f"{recipe.name} studies no index (its suite.source is {recipe.suite.source}): leave --index out, or name "
            "the passages that it is to read (evidence.index=FOLDER)"
        )
    need("tantivy", "search")
    from shoulders.retrieval.index import MANIFEST

    place = Path(sources[0]).expanduser()
    if len(sources) > 1 or not (place / MANIFEST).exists():
        place = folder / "index"
        with PartialState().main_process_first():  # the others find nothing changed
            build(sources, place)
    return replace(recipe, study=replace(recipe.study, index=str(place.absolute())))


def _studied(recipe: "Recipe", lm: "FrozenLM", folder: Path) -> "Recipe":
    """Return the recipe with the model's own questions, if it is one of self-study (`runs.self_study`)."""
    from shoulders.runs.recipe import SELF_STUDY

    if recipe.suite.source != SELF_STUDY:
        return recipe
    need("tantivy", "search")
    from shoulders.runs.self_study import studied

    with counting("self-study", "passages") as show:
        return studied(recipe, lm, folder, show)


def _is_ranking(name: str) -> bool:
    """Whether a recipe, by its name or its file, trains a retriever or a re-ranker."""
    from shoulders.runs.ranking_recipes import KINDS, ranking_recipes
    from shoulders.store.files import read_json

    if not name.endswith(".json"):
        return name in ranking_recipes()
    return Path(name).exists() and read_json(Path(name)).get("kind") in KINDS


def _train_ranking(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool, cross_fit: bool) -> None:
    """Train a retriever or a re-ranker, and print how well it orders passages."""
    need("tantivy", "search")
    quiet_libraries()
    from accelerate import PartialState

    from shoulders.cli.scores import watching
    from shoulders.retrieval.text_encoder import RERANKER
    from shoulders.runs import train_ranking
    from shoulders.runs.ranking_recipes import ranking_recipe_from_json, ranking_recipes
    from shoulders.runs.recipe import with_overrides
    from shoulders.store.files import BEST, read_json

    named = ranking_recipe_from_json(read_json(Path(name))) if name.endswith(".json") else ranking_recipes()[name]
    recipe = with_overrides(named, overrides)
    folder = out or Path("runs") / recipe.name
    steps = recipe.training.steps
    if every := recipe.refresh_every:
        inform(
            f"negatives from its own order, refreshed every {every:,} steps; for the questions until the next refresh "
            f"at most {recipe.scored_at_refresh:,} passages are scored"
        )
    if cross_fit:
        runs = train_ranking.cross_fit(
            recipe, folder, resume=resume, watch=lambda part: watching(f"{recipe.name} {part}", steps)
        )
        results = {part: ranked.result for part, ranked in runs.items()}
    else:
        with watching(recipe.name, steps) as watch:
            ranked = train_ranking.train_ranking(recipe, folder, resume=resume, watch=watch)
        results = {recipe.name: ranked.result}
    if not PartialState().is_main_process:
        return
    console.print(_ranking_table(results))
    kept = folder if cross_fit else folder / BEST
    encode = f"shoulders encode {recipe.index} --retriever {kept}"
    inform(f"kept in {kept}; use it: {f'evidence.reranker={kept}' if recipe.kind == RERANKER else encode}")


def _ranking_table(results: Mapping[str, Mapping[str, Any]]) -> Group:
    """Return a table of MRR and recall on the development questions, before and after ranking."""
    first = next(iter(results.values()))["development"]
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for column in ("", "MRR@10", *(f"recall@{k}" for k in sorted(first["recall"], key=int))):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("as found", *_ranking_cells(first, "found_"))
    for name, result in results.items():
        measured = result["development"]
        table.add_row(f"{name}, step {measured['step']}", *_ranking_cells(measured))
        if weight := measured.get("best_retriever_weight"):
            weighted = measured["retriever_weights"][str(weight)]
            table.add_row(f"  retriever_weight={weight}", *_ranking_cells(weighted))
    return titled(f"development: {first['questions']} questions with an answer among the passages found", table)


def _ranking_cells(measured: Mapping[str, Any], prefix: str = "") -> list[str]:
    recall = measured[f"{prefix}recall"]
    values = (measured[f"{prefix}reciprocal_rank"], *(recall[k] for k in sorted(recall, key=int)))
    return [f"{value:.1f}" for value in values]


def _with_rival(overrides: Sequence[str], rival: str) -> list[str]:
    """Return recipe values with the one that `--rival` sets."""
    return [*([f"rival.kind={rival}"] if rival else []), *overrides]


def _default_folder(recipe: "Recipe") -> Path:
    return Path("runs") / "-".join(filter(None, [recipe.name, recipe.rival.kind]))


def _train_and_measure(recipe: "Recipe", lm: "FrozenLM", parts: "TaskParts", folder: Path, *, resume: bool) -> None:
    """Train a recipe's scaffold or rival with loaded weights and tasks, and write its results."""
    from accelerate import PartialState

    from shoulders.runs.build import new_evidence
    from shoulders.store.files import BEST

    evidence = new_evidence(recipe, lm, recipe.scaffold.taken) if parts.tested else None
    run = _rival_run if recipe.rival.kind else _scaffold_run
    run(recipe, lm, parts, evidence, folder, resume=resume)
    if PartialState().is_main_process:
        inform(f"kept in {folder / BEST}; try: shoulders ask {folder}")


def _scaffold_run(
    recipe: "Recipe", lm: "FrozenLM", parts: "TaskParts", evidence: "Evidence | None", folder: Path, *, resume: bool
) -> None:
    """Train a scaffold, and let the main process measure it."""
    from accelerate import PartialState

    from shoulders.cli.scores import measuring, print_retrieval, print_scores, watching
    from shoulders.evaluation.results import RESULTS
    from shoulders.runs import run
    from shoulders.runs.jobs import measure, measure_text
    from shoulders.store.files import BEST, write_json

    with watching(recipe.name, recipe.training.steps) as watch:
        scaffold, progress = run.train(
            recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch
        )
    main = PartialState().is_main_process
    if not (main or lm.parallel):  # processes that share the weights measure together
        return
    if main:
        _print_training(run.trained_parameters(scaffold), progress)
    training = run.training_summary(folder, lm, progress)
    best = folder / BEST
    if not parts.tested:
        numbers = measure_text(recipe, lm, scaffold)
        if not main:
            return
        console.print(f"perplexity {numbers.perplexity:.2f} on {numbers.tokens:,} held-out tokens")
        write_json(folder / RESULTS, {**run.text_result(recipe, lm, scaffold, numbers, str(best)), **training})
        return
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, parts.tested, watch.on_done, evidence)
    if not main:
        return
    print_scores(recipe.name, {"score": scores})
    content = {**run.result(recipe, lm, scaffold, scores, str(best), evidence), **training}
    print_retrieval(content)
    write_json(folder / RESULTS, content)
    run.save_test_scores(scaffold, lm, best, recipe.test.split, scores)


def _rival_run(
    recipe: "Recipe", lm: "FrozenLM", parts: "TaskParts", evidence: "Evidence | None", folder: Path, *, resume: bool
) -> None:
    """Train a rival instead of the recipe's scaffold, and let the main process measure it."""
    from accelerate import PartialState

    from shoulders.answering.models import rival_info
    from shoulders.cli.evaluate import measured_rival
    from shoulders.cli.scores import watching
    from shoulders.evaluation.results import RESULTS
    from shoulders.paper.rivals import train_rival
    from shoulders.runs.run import training_summary
    from shoulders.store.files import BEST, write_json

    with watching(f"{recipe.name}, {recipe.rival.kind}", recipe.training.steps) as watch:
        progress = train_rival(recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch)
    if not PartialState().is_main_process:
        return
    training = training_summary(folder, lm, progress)
    content = measured_rival(rival_info(folder / BEST), recipe, lm, parts.tested, evidence)
    _print_training(content["trained"], progress)
    write_json(folder / RESULTS, {**content, **training})


def _fid_run(recipe: "Recipe", folder: Path, *, resume: bool) -> None:
    """Train a sequence-to-sequence model to read passages apart, and let the main process measure it."""
    from accelerate import PartialState

    from shoulders.answering.models import rival_info
    from shoulders.cli.evaluate import measured_fid
    from shoulders.cli.scores import watching
    from shoulders.evaluation.results import RESULTS
    from shoulders.paper.fid import train_fid
    from shoulders.store.files import BEST, write_json

    with watching(f"{recipe.name}, {recipe.rival.kind}", recipe.training.steps) as watch:
        progress = train_fid(recipe, folder, resume=resume, watch=watch)
    if PartialState().is_main_process:
        content = measured_fid(rival_info(folder / BEST), recipe)
        _print_training(content["trained"], progress)
        write_json(folder / RESULTS, {**content, "trained_on": progress.counts})


def _print_training(parameters: int, progress: "Progress") -> None:
    from shoulders.cli.scores import counts_table
    from shoulders.data.mixture import describe_counts

    best = f"best development score {progress.best_score:.1f} at step {progress.best_step}; "
    skipped = describe_counts(progress.counts)
    console.print(
        f"{parameters:,} trained parameters; {best if progress.best_step else ''}examples left out: {skipped}"
    )
    if skipped != "none":
        console.print(counts_table(progress.counts))


def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="values to try; several grids are combined [default: the paper's grid for what the recipe trains]",
        ),
    ] = None,
    fraction: Annotated[float, typer.Option(help="share of the steps that every candidate is trained for")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="folder of the sweep [default: runs/RECIPE-sweep]")] = None,
    resume: Annotated[bool, typer.Option(help="go on with what is not done yet")] = False,
    rival: Rival = "",
) -> None:
    """Train candidates for a tenth of a recipe's steps, then go on with the one that is best on the development part.

    Every candidate trains with the learning rates of its full run and pauses. The best one goes on from its checkpoint
    as if it had never paused, and is measured on the test part. The folder gets sweep.json, sweep.md (the table of
    candidates) and a folder for each run. A candidate that diverges or does not fit is noted and skipped.

    Example: `shoulders sweep bundled_soft_prompt --grid training.learning_rate=0.03,0.1,0.3`
    """
    from accelerate import PartialState

    from shoulders.cli.scores import watching
    from shoulders.runs import sweep as sweeping
    from shoulders.runs.build import as_asked
    from shoulders.runs.jobs import split_tasks

    quiet_libraries()
    base = find_recipe(recipe, _with_rival(overrides or [], rival))
    base = as_asked(base, base.scaffold.start)
    plan = sweeping.SweepPlan(base, sweeping.parse_grid(grid or []) or _paper_grid(base), fraction)
    candidates = plan.candidates()
    folder = out or _default_folder(base).with_name(f"{_default_folder(base).name}-sweep")
    lm = weights_of(base.backbone)
    plan = replace(plan, recipe=_studied(base, lm, folder))
    parts = split_tasks(plan.recipe)

    def watch(candidate: "Candidate") -> "AbstractContextManager[Watch]":
        return watching(f"candidate {candidate.name} of {len(candidates)}", plan.until)

    swept = sweeping.sweep(plan, lm, parts, folder, _train_until, watch, resume=resume)
    assert swept.chosen is not None
    if PartialState().is_main_process:
        inform(swept.table())
    _train_and_measure(swept.chosen.recipe, lm, parts, folder / swept.chosen.name, resume=True)


def _paper_grid(recipe: "Recipe") -> "Grid":
    """Return the paper's grid for what the recipe trains."""
    from shoulders.paper.recipes import GRIDS

    kind = recipe.rival.kind or recipe.scaffold.kind
    if kind not in GRIDS:
        rate = "rival.learning_rate" if recipe.rival.kind else "training.learning_rate"
        raise UsageError(f"the paper has no grid for {kind}: name one, --grid {rate}=1e-4,2e-4,5e-4")
    return GRIDS[kind]


def _train_until(recipe: "Recipe", *given: Any, **options: Any) -> "Progress":
    """Train the recipe's scaffold, or its rival, up to a pause."""
    from shoulders.paper.rivals import train_rival
    from shoulders.runs.run import train_until

    return (train_rival if recipe.rival.kind else train_until)(recipe, *given, **options)
