"""Fusion-in-Decoder (FiD), the paper's fine-tuned rival of a frozen reader, for any sequence-to-sequence model.

The encoder reads each passage apart, with the question; the decoder attends to the states of all of them together.
Source: Izacard and Grave 2021, "Leveraging Passage Retrieval with Generative Models for Open Domain Question
Answering", section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast, final

import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.answering.models import FID, RIVAL, RivalInfo
from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.frozen import FrozenLM, pad_right
from shoulders.backbone.sources import pick_dtype
from shoulders.data.mixture import Counts, Mixture, add_count, fold_of
from shoulders.data.tasks import check_has_answers
from shoulders.engine.batches import by_length, read_by_length
from shoulders.engine.inference import Answering, likeliest_choice
from shoulders.errors import DataError, UsageError
from shoulders.evaluation.protocol import OnDone, Scores, evaluate_answers
from shoulders.evaluation.recall import retrieval
from shoulders.evaluation.results import provenance, scores_as_json
from shoulders.evidence.choice import PASSAGES
from shoulders.evidence.packing import Packed, PackedEvidence
from shoulders.records import IGNORE, Answer, Example, Passage, Question
from shoulders.runs.build import new_evidence, stored_spec, training_mixture
from shoulders.runs.jobs import Job, split_tasks
from shoulders.runs.recipe import Recipe, recipe_from_json
from shoulders.runs.run import Watch, run_folder, trained_parameters
from shoulders.scaffolds.storage import Origin
from shoulders.store.files import BEST, atomic_folder
from shoulders.training.loop import Progress
from shoulders.training.plan import TOKENS

Source = list[int]  # token ids of a question with one passage


@final
@dataclass(frozen=True, slots=True)
class Apart:
    """A source of passages that are all read, each apart, instead of being packed into one context."""

    found: PackedEvidence

    @property
    def passes(self) -> int:
        """Passes of the frozen model: none."""
        return 0

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the source."""
        return self.found.fingerprint

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the passages of each question, in their order."""
        return self.found.find(questions, fold)

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question with all of its passages."""
        return Packed(question, tuple(passages))

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question as it is: its passages are inputs of their own."""
        del passages
        return question


@final
class FusionInDecoder(nn.Module):
    """A sequence-to-sequence model that reads passages apart and answers from all of them, while it trains and after.

    Attributes:
        model: the model, in fp32 while it trains; a copy of the backbone.
        compute: type of the matrix products.
        longest: tokens of a question with one passage at most; the passage is cut at its end.
    """

    def __init__(self, model: FrozenEncoderDecoder, compute: torch.dtype, longest: int) -> None:
        super().__init__()
        self.model, self.compute, self.longest = model, compute, longest
        model.model.requires_grad_(True)
        self.weights = nn.ParameterList(model.model.parameters())  # each once, also those that several layers share

    @classmethod
    def load(cls, name: str, recipe: Recipe) -> Self:
        """Load the weights of that name, to be used as the recipe says.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: as `FrozenEncoderDecoder.load`.
        """
        backbone = recipe.backbone
        end = backbone.input_end
        model = FrozenEncoderDecoder.load(name, dtype="float32", device=backbone.device, input_end=end)
        return cls(model, pick_dtype(backbone.dtype, model.device), recipe.rival.length)

    def sources(self, question: str, passages: Sequence[Passage]) -> list[Source]:
        """Return the question with each of its passages as token ids (section 3: "question:", "title:", "context:")."""
        texts = [f"question: {question} title: {one.title} context: {one.text}" for one in passages]
        return [self.model.source_ids(text, self.longest)[0] for text in texts or [f"question: {question}"]]

    def forward(self, rows: Sequence["FusedExample"]) -> Float[Tensor, ""]:
        """Return the loss of some examples, summed over the tokens of their answers; dropout is on."""
        labels = pad_right([row.target for row in rows], IGNORE).ids.to(self.model.device)
        self.model.model.train()
        try:
            with self._multiplying():
                encoded, mask = self.model.fused([row.sources for row in rows])
                return self.model.losses(encoded, mask, labels).sum()
        finally:
            self.model.model.eval()

    def likeliest(self, groups: Sequence[Sequence[Source]], longest: int) -> list[Answer]:
        """Return the greedy answer of each group of sources."""
        with self._multiplying():
            found = self.model.likeliest_fused(groups, longest=longest)
        return [Answer(self.model.text(one.ids).strip(), one.log_probability, one.margin) for one in found]

    @torch.inference_mode()
    def scores(self, group: Sequence[Source], choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice, summed over its tokens."""
        labels = pad_right([self.model.target_ids(choice) for choice in choices], IGNORE).ids.to(self.model.device)
        with self._multiplying():
            encoded, mask = self.model.fused([group])
            rows = len(labels)
            losses = self.model.losses(encoded.expand(rows, -1, -1), mask.expand(rows, -1), labels)
        return (-losses).tolist()

    def _multiplying(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.compute, enabled=self.compute != torch.float32)


@dataclass(frozen=True, slots=True)
class FusedExample:
    """A question with each of its passages, and the answer, as token ids."""

    sources: Sequence[Source]
    target: list[int]

    @property
    def length(self) -> int:
        """Number of positions, of sources padded to the longest and of the answer."""
        return len(self.sources) * max(map(len, self.sources)) + len(self.target)


@dataclass(frozen=True, slots=True)
class FusedStep:
    """The examples of one step; the share of this process is divided into micro-batches."""

    parts: Sequence[Sequence[FusedExample]]
    terms: int
    positions: int


@final
class FusedSource:
    """A source of steps of examples with their passages, each passage an input of its own."""

    def __init__(self, recipe: Recipe, mixture: Mixture, model: FusionInDecoder, evidence: Apart) -> None:
        self.plan, self.fold, self.longest = recipe.training, recipe.suite.fold, recipe.suite.lengths.target
        self.mixture, self.model, self.evidence = mixture, model, evidence
        self.position = 0
        self.counts: Counts = {}

    def step(self) -> FusedStep:
        """Return the examples of the next step.

        Raises:
            DataError: no example of a whole epoch can be used.
        """
        examples: list[tuple[Example, list[int]]] = []  # with token ids of the target
        first = self.position
        while len(examples) < self.plan.batch_size:
            if self.position - first > 2 * len(self.mixture):
                raise DataError(f"none of {len(self.mixture)} examples can be trained on: see suite.fold={self.fold}")
            example = self.mixture.read(self.position, self.counts, self.fold)
            self.position += 1
            if example is None:
                continue
            check_has_answers(example)
            target = self.model.model.target_ids(example.target)
            if len(target) > self.longest:
                add_count(self.counts, example.task, "discarded")
            else:
                examples.append((example, target))
        rows = [self._row(*one) for one in examples]
        state = PartialState()
        mine = rows[state.process_index :: state.num_processes]
        parts = list(by_length(mine, lambda row: row.length, int(self.plan.positions_at_once)))
        return FusedStep(parts, sum(len(row.target) for row in rows), sum(row.length for row in mine))

    def _row(self, example: Example, target: list[int]) -> FusedExample:
        (passages,) = self.evidence.find([example.question], fold_of(example))
        return FusedExample(self.model.sources(example.question.query, passages), target)


@final
@dataclass(frozen=True, slots=True)
class FusedAnswers:
    """A trained model that answers from the passages of an evidence source."""

    model: FusionInDecoder
    evidence: Apart
    how: Answering

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the greedy answer to each question."""
        groups = self._sources(questions)
        lengths = [sum(map(len, group)) for group in groups]

        def read(numbers: Sequence[int]) -> list[Answer]:
            return self.model.likeliest([groups[number] for number in numbers], self.how.longest)

        return read_by_length(lengths, self.how.positions_at_once, read)

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """Return the most likely choice of each question."""
        groups = zip(self._sources(questions), choices, strict=True)
        return [likeliest_choice(options, self.model.scores(group, options)) for group, options in groups]

    def _sources(self, questions: Sequence[Question]) -> list[list[Source]]:
        found = self.evidence.find(questions)
        return [self.model.sources(one.query, passages) for one, passages in zip(questions, found, strict=True)]


def train_fid(recipe: Recipe, folder: Path, *, resume: bool = False, watch: Watch | None = None) -> Progress:
    """Train the recipe's sequence-to-sequence model to answer from passages; the run's folder is like a scaffold's.

    `best/` holds the model with the best development score, as transformers saves it.

    Raises:
        UsageError: the recipe reads no passages, or the folder holds another run, or a run and `resume` is not set.
        SourceNotFound, HubUnreachable: as `FrozenEncoderDecoder.load`.
    """
    if recipe.training.average != TOKENS:
        raise UsageError(f"training.average={recipe.training.average} is not known to fid: leave it at {TOKENS}")
    run = run_folder(folder, recipe, resume=resume)
    tasks = split_tasks(recipe).trained
    torch.manual_seed(recipe.training.seed)
    model = FusionInDecoder.load(recipe.backbone.name, recipe)
    evidence = passages_of(recipe, model.model)
    watch = watch or Watch()
    mixture = training_mixture(recipe.suite, tasks, recipe.training.seed)
    answering = stored_spec(recipe).as_json()
    width = int(model.model.model.config.hidden_size)
    kept = Origin(
        model.model.name, model.model.fingerprint(), width, recipe.as_json(), answering=answering
    )  # before it changes

    def score() -> float:
        return _scores(recipe, model, evidence, recipe.development, tasks, watch.on_done).average

    def keep(average: float, step: int) -> None:
        with atomic_folder(folder / BEST, RIVAL) as scratch:
            model.model.model.save_pretrained(scratch)
            model.model.tokenizer.save_pretrained(scratch)
            origin = replace(kept, scores={"development": {"average": average, "step": step}})
            RivalInfo(scratch, FID, 0, trained_parameters(model), origin).write()

    job = Job(FusedSource(recipe, mixture, model, evidence), lambda module, part: module(part), score)
    return run.fit(model, job, recipe.rival.plan(recipe.training), keep, watch)


def measure_fid(info: RivalInfo, recipe: Recipe, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Measure a trained model by a recipe's `test`; return scores and the content of `results.json`.

    Raises:
        UsageError: the recipe reads no passages.
        CorruptFile: the weights cannot be read.
    """
    model = FusionInDecoder.load(str(info.folder), replace(recipe, rival=recipe_from_json(info.origin.recipe).rival))
    evidence, tasks = passages_of(recipe, model.model), split_tasks(recipe).tested
    scores = _scores(recipe, model, evidence, recipe.test, tasks, on_done)
    asked = [one for row in scores.wordings for one in row.predictions]
    found = retrieval([one.example for one in asked], evidence, recipe.evidence.passages, [one.text for one in asked])
    name = str(info.folder)
    about = {"kind": FID, "name": name, "fingerprint": model.model.fingerprint(), "encoder": None}
    return scores, {
        **scores_as_json(scores),
        "retrieval": found.as_json(),
        "demonstrations": None,
        "evidence": {"kind": recipe.evidence.kind, "index": recipe.evidence.index, "fingerprint": evidence.fingerprint},
        "trained": info.trained,
        "scaffold": about,
        **provenance(recipe.as_json(), model.model),
    }


def passages_of(recipe: Recipe, model: FrozenEncoderDecoder) -> Apart:
    """Return the source of the passages that a recipe names.

    Raises:
        UsageError: it names none.
    """
    if recipe.evidence.kind not in PASSAGES:
        raise UsageError(
            f"fid answers from passages, and evidence.kind is {recipe.evidence.kind or 'empty'}: set "
            "evidence.kind=retrieved and evidence.index=FOLDER"
        )
    # Only its context and device are asked for: nothing is packed.
    return Apart(cast(PackedEvidence, new_evidence(recipe, cast(FrozenLM, model), 0)))


def _scores(
    recipe: Recipe, model: FusionInDecoder, evidence: Apart, plan: Any, tasks: Sequence[Any], on_done: OnDone
) -> Scores:
    suite = recipe.suite
    return evaluate_answers(
        tasks,
        lambda how: FusedAnswers(model, evidence, how),
        plan,
        without=suite.without(tasks),
        skip=suite.skip,
        on_done=on_done,
    )
