"""Training of a retriever or a re-ranker by its recipe, and cross-fitting of re-rankers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import FOLDS
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import EvaluationPlan, chosen_examples
from shoulders.evaluation.recall import RankedQuestion, RankingScores, answerable_questions, ranking
from shoulders.evaluation.results import RESULTS, circumstances
from shoulders.evidence.kinds import SCORES, new_searcher
from shoulders.evidence.reranked import ALL
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.language_model import LanguageModelRanker
from shoulders.retrieval.reranker import LossWeights, Reranker, RerankerOrigin, is_reranker
from shoulders.retrieval.scoring import WEIGHTS, Pair, SeenQuestions, by_question, ordering
from shoulders.retrieval.search import Searcher
from shoulders.retrieval.text_encoder import RERANKER
from shoulders.runs.build import suite_parts, training_mixture
from shoulders.runs.jobs import Job
from shoulders.runs.ranking_recipes import RankingRecipe, RankingTeacher, ranking_recipe_from_json
from shoulders.runs.run import RunFolder, Watch
from shoulders.scaffolds.base import scaffold_named
from shoulders.store.cache import ValueCache
from shoulders.store.files import BEST, cache_folder, read_json, write_json
from shoulders.training.loop import Progress
from shoulders.training.plan import TrainPlan
from shoulders.training.rankers import (
    OwnNegatives,
    PassageTeacher,
    RankingSampler,
    RankingSource,
    RerankerLoss,
    RetrieverLoss,
    ranking_loss,
)

UNIT_SCALE = 20.0  # factor of scores of unit vectors (sentence-transformers)
# Learning rates of a re-ranker that starts at the retriever's order: of its head, which starts at random, and of its
# gate, a single number that has to come from 0 to about 1 within some dozens of steps.
HEAD_RATE, GATE_RATE = 1e-3, 2e-2


@dataclass(frozen=True, slots=True)
class RankingRun:
    """A finished run of a retriever or re-ranker.

    Attributes:
        folder: of the best model.
        result: content of results.json: scores of the ranking on the development questions, with their provenance.
    """

    folder: Path
    progress: Progress
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Model:
    """The training loss of a model, its scores of passages, and how it is saved.

    Attributes:
        order_weight: see `Reranker`.
        seen: questions that it had been trained on before.
        rates: parameters that have a learning rate of their own; the others have the plan's.
        own: chooses the negatives of a re-ranker from its own order, if its recipe says so.
    """

    loss: RerankerLoss | RetrieverLoss
    scores: Callable[[Sequence[Pair]], Sequence[float]]
    save: Callable[[Path, RerankerOrigin], None]
    order_weight: float = 0.0
    seen: SeenQuestions = field(default_factory=SeenQuestions)
    rates: Sequence[tuple[float, Sequence[Tensor]]] = ()
    own: OwnNegatives | None = None

    def groups(self, plan: TrainPlan) -> list[dict[str, Any]] | None:
        """Return the optimizer groups; None if all parameters have the plan's rate."""
        if not self.rates:
            return None
        known = {id(one) for _, some in self.rates for one in some}
        others = [one for one in self.loss.parameters() if one.requires_grad and id(one) not in known]
        return [
            {"params": list(some), "lr": rate} for rate, some in [(plan.learning_rate, others), *self.rates] if some
        ]

    def ordered(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[list[float]]:
        """Return a score for each passage of each question."""
        pairs = [
            Pair(question, hit.title, hit.text) for question, some in zip(questions, hits, strict=True) for hit in some
        ]
        return [
            ordering(scores, [hit.score for hit in some], order_weight=self.order_weight)
            for scores, some in zip(by_question(self.scores(pairs), hits), hits, strict=True)
        ]


def train_ranking(
    recipe: RankingRecipe, folder: Path, *, resume: bool = False, watch: Watch | None = None
) -> RankingRun:
    """Train the model of a recipe, and save the best on the development questions with its scores.

    Raises:
        UsageError: no index is named, the folder holds another run, or a run and `resume` is false.
        SourceNotFound, UsageError: the retriever is missing (`new_searcher`).
        DataError: no question has a passage to learn from, or to be measured on.
    """
    if not recipe.index:
        raise UsageError("no index of passages is named: build one (shoulders index), then index=FOLDER")
    run = RunFolder.opened(folder, recipe.as_json(), _kept, resume=resume)
    index, tasks = Index(Path(recipe.index).expanduser()), suite_parts(recipe.suite).trained
    searcher = new_searcher(recipe, index)
    measured_on = _development(recipe, index, searcher, tasks)
    torch.manual_seed(recipe.training.seed)
    model = _reranker(recipe) if recipe.kind == RERANKER else _retriever(recipe)
    hardest = bool(model.order_weight)  # what it has to correct is the head of the retriever's order
    drawn = recipe.depth, recipe.negatives, recipe.training.seed
    supervision = RankingSampler(index, *drawn, searcher, hardest, candidates=model.own is not None)
    source = _source(recipe, supervision, tasks, model)
    seen = SeenQuestions(SeenQuestions.of(source.questions).hashes | model.seen.hashes)
    last: list[RankingScores] = []

    def score() -> float:
        weights = WEIGHTS if recipe.kind == RERANKER and not model.order_weight else ()
        last[:] = [ranking(measured_on, model.ordered, weights)]
        return last[0].ordered.reciprocal_rank

    def keep(_score: float, step: int) -> None:
        measured = {"step": step, **last[0].as_json()}
        model.save(folder / BEST, RerankerOrigin(recipe.encoder, recipe.as_json(), measured, seen))
        content = {"kind": recipe.kind, "development": measured, "training_questions": len(seen)}
        write_json(folder / RESULTS, {**content, "recipe": recipe.as_json(), **circumstances()})

    job = Job(source, ranking_loss, score, *([model.own.refresh] if model.own else []))
    groups = model.groups(recipe.training)
    progress = run.fit(model.loss, job, recipe.training, keep, watch or Watch(), groups)
    return RankingRun(folder / BEST, progress, read_json(folder / RESULTS))


def cross_fit(
    recipe: RankingRecipe, folder: Path, *, resume: bool = False, watch: Callable[[str], AbstractContextManager[Watch]]
) -> dict[str, RankingRun]:
    """Train re-rankers on the halves A and B of the questions, and on all (the paper, section 3.1).

    Each has a folder of its own; with `resume`, a finished one is not trained again.

    Args:
        recipe: its `encoder` may be the folder of cross-fitted re-rankers: each goes on from that of its own name.
        watch: opens the progress callbacks of the run of a name.

    Raises:
        UsageError: as `train_ranking`; or the recipe is not that of a re-ranker, or names a fold.
    """
    if recipe.kind != RERANKER or recipe.suite.fold:
        what = f"kind={recipe.kind}" if recipe.kind != RERANKER else f"suite.fold={recipe.suite.fold}"
        raise UsageError(f"cross-fitting trains a re-ranker on each half and on all questions: leave {what} out")
    folds = {**{fold: fold for fold in FOLDS}, ALL: ""}
    parts = {
        name: replace(recipe, encoder=_start(recipe.encoder, name), suite=replace(recipe.suite, fold=fold))
        for name, fold in folds.items()
    }
    for name, part in parts.items():  # before any of them is trained
        RunFolder.opened(folder, part.as_json(), _kept, resume=resume, part=name)
    found: dict[str, RankingRun] = {}
    for name, part in parts.items():
        with watch(name) as callbacks:
            found[name] = train_ranking(
                part, folder / name, resume=resume and (folder / name).exists(), watch=callbacks
            )
    return found


def _start(encoder: str, name: str) -> str:
    """Return what a re-ranker starts from: of cross-fitted ones, that of its own questions."""
    inner = Path(encoder).expanduser() / name
    return str(inner) if is_reranker(inner) else encoder


def _kept(path: Path) -> Mapping[str, Any]:
    return ranking_recipe_from_json(read_json(path)).as_json()


def _development(
    recipe: RankingRecipe, index: Index, searcher: Searcher, tasks: Sequence[Task]
) -> list[RankedQuestion]:
    plan, suite = recipe.development, recipe.suite
    wanted = EvaluationPlan(split=plan.split, limit=plan.limit, wordings=1)
    chosen = chosen_examples(tasks, wanted, suite.without(tasks), skip=suite.skip)
    return answerable_questions(
        [example for one in chosen.asked for example in one.examples], index, plan.depth, searcher
    )


def _source(recipe: RankingRecipe, supervision: RankingSampler, tasks: Sequence[Task], model: _Model) -> RankingSource:
    suite, plan = recipe.suite, recipe.training
    mixture = training_mixture(suite, tasks, plan.seed)
    at_once = int(plan.positions_at_once) if recipe.kind == RERANKER else None
    teacher = _teacher(recipe.teacher)
    return RankingSource(
        mixture, suite.fold, supervision, plan.batch_size, model.loss.cost, at_once, teacher, model.own
    )


def _teacher(choice: RankingTeacher) -> PassageTeacher | None:
    if not choice.weight:
        return None
    lm = FrozenLM.load(choice.backbone, dtype=choice.dtype)
    ranker = LanguageModelRanker(lm, choice.likelihood, scaffold_named(choice.scaffold, lm))
    store = ValueCache(choice.store or cache_folder() / SCORES, option="teacher.store")
    return PassageTeacher(ranker, store, choice.temperature)


def _reranker(recipe: RankingRecipe) -> _Model:
    reranker = Reranker.start(
        recipe.encoder,
        length=recipe.length,
        dropout=recipe.dropout,
        seed=recipe.training.seed,
        dtype=recipe.dtype,
        order_weight=recipe.order_weight,
    )
    own = OwnNegatives(reranker, recipe.refresh_every, recipe.negatives) if recipe.refresh_every else None
    loss = RerankerLoss(reranker, LossWeights(recipe.span, recipe.teacher.weight), own)
    rates: list[tuple[float, Sequence[Tensor]]] = []
    if reranker.gate is not None:
        rates = [(HEAD_RATE, [*reranker.relevance.parameters()]), (GATE_RATE, [reranker.gate])]
    return _Model(
        loss,
        lambda pairs: reranker.frozen().scores(pairs),
        reranker.save,
        recipe.order_weight,
        reranker.seen,
        rates,
        own,
    )


def _retriever(recipe: RankingRecipe) -> _Model:
    encoder = BiEncoder.load(recipe.encoder, dtype=recipe.dtype)
    encoder.reading = replace(encoder.reading, longest=recipe.length)

    def scores(pairs: Sequence[Pair]) -> list[float]:
        questions = list(dict.fromkeys(pair.question for pair in pairs))
        vectors = dict(zip(questions, encoder.encode_questions(questions), strict=True))
        passages = encoder.encode_passages([pair.title for pair in pairs], [pair.text for pair in pairs])
        return [float(vectors[pair.question] @ passage) for pair, passage in zip(pairs, passages, strict=True)]

    scale = UNIT_SCALE if encoder.reading.normalised else 1.0
    return _Model(RetrieverLoss(encoder, scale), scores, lambda folder, _about: encoder.save(folder))
