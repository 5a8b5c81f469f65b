"""A calibrated cascade as an answerer: a question reaches the next, more expensive stage if confidence is too low."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

from shoulders.answering.answerer import Answerer, ModelAnswerer, evidence_over
from shoulders.answering.models import model_info
from shoulders.answering.spec import AnswerSpec, spec_from_json
from shoulders.answering.stages import Cascade, Stage, StageAnswer, StoredCascade
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.inference import Answering, Engine, Sampling, likeliest_choice
from shoulders.errors import UsageError
from shoulders.evidence.demonstrations import stops_of
from shoulders.records import Answer, QuestionLike, as_questions


@final
@dataclass(frozen=True, slots=True)
class CascadeAnswerer(Answerer):
    """A cascade of stages around one frozen model, cheapest first, as an answerer.

    Attributes:
        how: settings of the generation of answers.
        spec: wording of questions; each stage has its own evidence.
    """

    lm: FrozenLM
    adaptive: Cascade
    how: Answering
    spec: AnswerSpec = field(default_factory=AnswerSpec)

    @classmethod
    def load(cls, stored: StoredCascade, lm: FrozenLM, longest: int | None = None, *, truncate: bool = False) -> Self:
        """Return the cascade of a folder, around its backbone.

        Raises:
            SourceNotFound, UsageError, WrongBackbone: as `StoredCascade.load`.
        """
        spec = spec_from_json(stored.calibration.answering, stored.folder).with_options(longest=longest)
        return cls(lm, stored.load(lm, load_stage), Answering(spec.longest, truncate), spec)

    @property
    def reads_passages(self) -> bool:
        """Whether any stage reads questions with passages."""
        return any(self._alone(stage).reads_passages for stage in self.adaptive.stages)

    def only(self, passes: int) -> Self:
        """Return the most expensive stage of at most so many passes as a cascade of its own (`Cascade.only`)."""
        return replace(self, adaptive=self.adaptive.only(passes))

    def decide(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[StageAnswer]:
        """Return the answer to each question, with its stage and the passes of all stages that were used."""

        def ask(stage: Stage, numbers: Sequence[int]) -> list[Answer]:
            some = [choices[number] for number in numbers] if choices else ()
            return self._alone(stage).ask_all([asked[number] for number in numbers], some)

        asked = as_questions(questions)
        return self.adaptive.answer_in_stages(len(asked), ask)

    def ask_all(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Return the answers to several questions, which share batches in each stage."""
        return [replace(one.answer, passes=one.passes) for one in self.decide(questions, choices)]

    def rank(self, question: QuestionLike, choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice, from the stage that is confident of one."""
        scores: list[float] = []

        def ask(stage: Stage, _: Sequence[int]) -> list[Answer]:
            scores[:] = self._alone(stage).rank(question, choices)
            return [likeliest_choice(choices, scores)]

        self.adaptive.answer_in_stages(1, ask)
        return scores

    def sample(self, question: QuestionLike, sampling: Sampling | None = None) -> list[Answer]:
        """Return several answers, drawn in the stage that is confident of its greedy answer."""
        (decided,) = self.decide([question])
        return self._alone(self.adaptive.stages[decided.stage]).sample(question, sampling)

    def stream(self, question: QuestionLike) -> Iterator[str]:
        """Yield the answer in one piece: confidence is known only once an answer is complete."""
        yield self.ask(question).text

    def over(self, engine: Engine) -> Self:
        """Return the same cascade, with the evidence of its stages, whose passes an engine runs."""
        stages = tuple(replace(stage, evidence=evidence_over(stage.evidence, engine)) for stage in self.adaptive.stages)
        return replace(self, how=replace(self.how, engine=engine), adaptive=replace(self.adaptive, stages=stages))

    def _alone(self, stage: Stage) -> ModelAnswerer:
        spec, how = replace(self.spec, chat=stage.chat), replace(self.how, stops=stops_of(stage.evidence))
        return ModelAnswerer(self.lm, stage.scaffold, how, spec, stage.evidence)


def load_stage(name: str, lm: FrozenLM) -> Stage:
    """Return the stage of a scaffold, or of the bare model, with its evidence.

    Raises:
        SourceNotFound, CorruptFile, WrongBackbone: as `ModelInfo.load`.
    """
    info = model_info(name)
    if info.rival:
        raise UsageError(
            f"{name} holds a rival ({info.rival.kind}), and all stages share one frozen model: name scaffolds"
        )
    scaffold = info.load(lm).scaffold
    return Stage.of(scaffold, name, info.spec.source(lm, scaffold.length), info.spec.chat)
