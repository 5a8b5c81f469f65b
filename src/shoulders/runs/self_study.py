"""Self-study: the frozen model asks questions about the passages of an index, and answers them with the passage.

The questions are a data set like any other (`qa:` files), whose annotated passages are the evidence of a teacher: so a
scaffold is distilled that answers about the passages without reading them. Source: Eyuboglu et al. 2025 (Cartridges).
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from accelerate import PartialState

from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.formats import GOLD
from shoulders.data.readers import QA, QUERY, QUESTION_WORDING
from shoulders.engine.inference import Answering, Sampling, answered
from shoulders.errors import DataError, UsageError
from shoulders.evaluation.protocol import OnDone
from shoulders.evaluation.results import circumstances
from shoulders.evidence.base import passage_id
from shoulders.evidence.candidates import FirstPass
from shoulders.evidence.choice import EvidenceChoice
from shoulders.evidence.packing import Packer
from shoulders.records import Passage, Question
from shoulders.runs.recipe import SELF_STUDY, Recipe
from shoulders.scaffolds.base import Bare, Scaffold, scaffold_named
from shoulders.store.cache import ValueCache, key_of_texts
from shoulders.store.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.passages import StoredPassage

FOLDER, ABOUT, KEPT, CORPUS = "self-study", "about.json", "generated.sqlite", "corpus.txt"
BEGINNING = 100_000  # characters of the passages that a scaffold may start from
ASKED = "Question:"
AT_ONCE = 16  # passages whose questions are generated together, and then kept on disk


def studied(recipe: Recipe, lm: FrozenLM, folder: Path, on_done: OnDone = lambda _done, _all: None) -> Recipe:
    """Return the recipe with the model's own questions as its suite; unchanged if its suite is another.

    The questions, and what they were made with, are kept in a folder of the run. What was generated before an
    interruption is not generated again. A scaffold that starts from a document of the name self-study
    (scaffold.init_text) starts from the first passages.

    Args:
        folder: of the run.
        on_done: called with the number of passages done, and of all.

    Raises:
        UsageError: no index is named.
        SourceNotFound: there is no index, or no scaffold of the teacher.
        DataError: no question can be kept.
    """
    if recipe.suite.source != SELF_STUDY:
        return recipe
    study = recipe.study
    if not study.index:
        raise UsageError(
            f"suite.source={SELF_STUDY} asks questions about an index, and none is named: --index INDEX|FILE, or "
            "study.index=FOLDER"
        )
    from shoulders.retrieval.index import Index  # needs the search libraries

    place = (folder / FOLDER).absolute()
    with PartialState().main_process_first():  # the others find everything done
        _Study(recipe, lm, Index(study.index), place, on_done).write()
    evidence = recipe.teacher.evidence
    if isinstance(evidence, EvidenceChoice):
        evidence = replace(evidence, index=study.index)
    suite = replace(recipe.suite, source=f"{QA}{place / FOLDER}")
    scaffold = recipe.scaffold
    if getattr(scaffold, "init_text", "") == SELF_STUDY:
        scaffold = replace(scaffold, init_text=str(place / CORPUS))
    return replace(recipe, scaffold=scaffold, suite=suite, teacher=replace(recipe.teacher, evidence=evidence))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question about a passage, with its answer."""

    passage: int
    question: str
    answer: str

    def as_json(self, number: int) -> dict[str, Any]:
        """Return the record of a file of questions."""
        gold = [passage_id(self.passage)]
        return {"id": str(number), "question": self.question, "answers": [self.answer], GOLD: gold}


@final
class _Study:
    """The questions and answers of one recipe over one index."""

    def __init__(self, recipe: Recipe, lm: FrozenLM, index: "Index", folder: Path, on_done: OnDone) -> None:
        self.study, self.lm, self.index, self.folder, self.on_done = recipe.study, lm, index, folder, on_done
        self.longest = max(1, recipe.suite.lengths.target - 1)  # and the end token
        self.reader = scaffold_named(recipe.teacher.scaffold, lm)
        self.input = recipe.teacher.input
        self.left_out: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = ValueCache(folder / KEPT, option="--out")

    def write(self) -> None:
        """Generate and write the questions, unless they are there already."""
        about = self._about()
        path = self.folder / ABOUT
        if path.exists() and {key: value for key, value in read_json(path).items() if key in about} == about:
            return
        asked = [*self._asked()]
        if len(asked) < 2:
            raise DataError(
                f"self-study of {self.index.folder} found {len(asked)} questions to keep, and two are needed "
                f"(left out: {self._told()}): raise study.questions, or change study.prompts"
            )
        with atomic_file(self.folder / CORPUS) as part:
            part.write_text(self._beginning(), encoding="utf-8")
        draw = random.Random(self.study.seed)
        held = set(draw.sample(range(len(asked)), max(1, round(self.study.held_out * len(asked)))))
        for split, wanted in (("train", False), ("dev", True)):
            lines = [json.dumps(one.as_json(n)) for n, one in enumerate(asked) if (n in held) == wanted]
            with atomic_file(self.folder / f"{FOLDER}.{split}.jsonl") as part:
                part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        found = {"questions": len(asked), "held_out": len(held), "left_out": self.left_out}
        write_json(path, {**about, "found": found, **circumstances()})

    def _about(self) -> dict[str, Any]:
        """Return all that the questions depend on."""
        return {
            "study": json.loads(json.dumps(asdict(self.study))),
            "reader": {"scaffold": identity(self.reader), "input": self.input, "longest": self.longest},
            "backbone": self.lm.fingerprint(),
            "passages": self.index.fingerprint,
        }

    def _beginning(self) -> str:
        texts: list[str] = []
        for passage in self.index.store.passages():
            texts.append(f"{passage.title}\n{passage.text}\n\n")
            if sum(map(len, texts)) >= BEGINNING:
                break
        return "".join(texts)

    def _told(self) -> str:
        return ", ".join(f"{number} {why}" for why, number in self.left_out.items()) or "none"

    def _asked(self) -> Iterator[_Asked]:
        passages = [*self.index.store.passages()]
        for start in range(0, len(passages), AT_ONCE):
            some = passages[start : start + AT_ONCE]
            yield from self._answered(self._questions(some))
            self.on_done(start + len(some), len(passages))

    def _questions(self, passages: "Sequence[StoredPassage]") -> "list[tuple[StoredPassage, str]]":
        """Return distinct questions about passages, in their order."""
        study = self.study
        prompts = [Question(f"{prompt}\n{ASKED}") for prompt in study.prompts]
        read = self._read([(passage, prompt) for passage in passages for prompt in prompts], Bare(), study.longest)
        sampling = Sampling(study.questions, study.temperature, study.seed)
        name = f"{self.lm.fingerprint()}/{study.temperature}/{study.longest}/{study.seed}"
        sampler = FirstPass(self.lm, Bare(), sampling, Answering(study.longest), self.kept, name)
        samples = sampler.samples([question for _, question in read], study.questions)
        found: dict[tuple[int, str], tuple[StoredPassage, str]] = {}
        for (passage, _), some in zip(read, samples, strict=True):
            for one in some:
                text = _first_line(one.text)
                if not text.endswith("?"):
                    self._leave_out("without a question mark")
                elif (passage.id, text.casefold()) in found:
                    self._leave_out("asked twice")
                else:
                    found[passage.id, text.casefold()] = passage, text
        return [*found.values()]

    def _answered(self, asked: "Sequence[tuple[StoredPassage, str]]") -> Iterator[_Asked]:
        """Yield the questions with their greedy answers, those without an answer left out."""
        wordings = [(passage, Question(QUESTION_WORDING.replace(QUERY, text), query=text)) for passage, text in asked]
        read = self._read(wordings, self.reader, self.longest)
        for (passage, question), answer in zip(read, self._answers([question for _, question in read]), strict=True):
            if text := _first_line(answer):
                yield _Asked(passage.id, question.query, text)
            else:
                self._leave_out("without an answer")

    def _answers(self, questions: Sequence[Question]) -> list[str]:
        """Return the answer to each question, from the kept ones or the model."""
        name = f"{self.lm.fingerprint()}/{identity(self.reader)}/{self.longest}"
        keys = [key_of_texts("answers", name, question.whole) for question in questions]
        known = self.kept.get(keys)
        missing = {key: one for key, one in zip(keys, questions, strict=True) if key not in known}
        fresh = answered([*missing.values()], self.lm, self.reader, Answering(self.longest))
        new = {key: one.text for key, one in zip(missing, fresh, strict=True)}
        self.kept.put(new)
        return [(known | new)[key] for key in keys]

    def _read(
        self, pairs: "Sequence[tuple[StoredPassage, Question]]", scaffold: Scaffold, longest: int
    ) -> "list[tuple[StoredPassage, Question]]":
        """Return the questions after their passages, those whose passage does not fit left out."""
        packer = Packer.for_context(self.lm, scaffold.length, longest, self.input)
        found: list[tuple[StoredPassage, Question]] = []
        for passage, question in pairs:
            packed = packer.pack(question, [Passage(passage.text, 0.0, passage.title)])
            if packed.passages:
                found.append((passage, packed.question))
            else:
                self._leave_out("with a passage that does not fit")
        return found

    def _leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
