"""A dense retriever: encoders of questions and passages, whose dot product is the score.

Source: Karpukhin et al. 2020, section 3.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from shoulders.backbone.sources import locate
from shoulders.engine.batches import by_length
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.records import Tokens
from shoulders.retrieval.text_encoder import DPR, Text, TextEncoder
from shoulders.store.files import atomic_folder, check_format, hub_errors, recover_folder, write_json

POSITIONS = 65_536  # encoded at once
POSITIONS_OF_CPU = 4096  # more do not stay in its caches, and cost a sixth of the speed


CLS, MEAN = "cls", "mean"
POOLINGS = (CLS, MEAN)
OURS, MODULES = "retriever.json", "modules.json"
FORMAT, VERSION = "shoulders-retriever", 1
SHARED, QUESTION, PASSAGE = "encoder", "question", "passage"  # folders of a saved retriever
PAIRS = "question_encoder", "ctx_encoder"  # what tells DPR's two repositories apart
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query", "question"), ("document", "passage", "corpus")
USUAL = 256  # tokens


@final
@dataclass(frozen=True, slots=True)
class TextForm:
    """Form of the texts that a retriever's encoders read, and how their states become one vector.

    Attributes:
        pooling: a text's vector is the state of its first token ("cls") or the mean of all its states ("mean").
        normalised: vectors have length one.
        pair: a passage is read as `title [SEP] text`, as in DPR; else as one text, the title in its first line.
        longest: tokens of a question or passage at most.
        question_prefix: put before each question, e.g. "query: ".
        passage_prefix: put before each passage.
    """

    pooling: str = MEAN
    normalised: bool = False
    pair: bool = False
    longest: int = USUAL
    question_prefix: str = ""
    passage_prefix: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UnknownName("pooling", self.pooling, POOLINGS)
        if self.longest < 3:
            raise UsageError(f"length of texts must be at least 3 tokens, got {self.longest}; {USUAL} are usual")

    def questions(self, texts: Sequence[str]) -> list[Text]:
        """Return questions in the form in which they are read."""
        return [f"{self.question_prefix}{text}" for text in texts]

    def passages(self, titles: Sequence[str], texts: Sequence[str]) -> list[Text]:
        """Return passages in the form in which they are read.

        DPR: Karpukhin et al. 2020, section 4.1, and `dpr/models/hf_models.py`; all segments are of the first type.
        Others: title and text as one text, as in BEIR (Thakur et al. 2021), which puts a space where we have a line
        break; BERT's tokenizers treat both alike.
        """
        both = zip(titles, texts, strict=True)
        if self.pair:
            return list(both)
        return [
            f"{self.passage_prefix}{title}\n{text}" if title else f"{self.passage_prefix}{text}" for title, text in both
        ]


DPR_READING = TextForm(CLS, pair=True)


@final
class BiEncoder(nn.Module):
    """An encoder of questions and one of passages, or one for both, and the form of the texts that they read.

    Attributes:
        name: the source it was loaded from.
        dimension: E, numbers of a vector.
    """

    def __init__(self, question: TextEncoder, passage: TextEncoder, reading: TextForm, name: str) -> None:
        super().__init__()
        self.passage, self.reading, self.name = passage, reading, name
        self.own_question = None if question is passage else question  # what is shared has its weights once
        self.dimension = passage.width

    @classmethod
    def load(cls, name: str, *, pooling: str = "", dtype: str = "auto", device: str = "auto") -> Self:
        """Load a retriever.

        Args:
            name: a hub id, folder or package of: DPR's encoders (one of the two, or `question|passage`), Spider, a
                sentence-transformers model, a retriever saved by `save`, or any encoder.
            pooling: "cls" or "mean"; "" for the pooling of its own configuration, or the mean if it has none.
            dtype: of matrix products (`TextEncoder.load`).

        Raises:
            SourceNotFound, HubUnreachable: there is no such model, or it cannot be fetched.
            UsageError: it is a retriever of an unsupported kind, or there is no such pooling.
        """
        recover_folder(Path(name))
        place = find_encoders(name)
        reading = replace(place.reading, pooling=pooling) if pooling else place.reading
        source, subfolder = place.question
        question = TextEncoder.load(source, dtype=dtype, device=device, subfolder=subfolder)
        if place.passage == place.question:
            return cls(question, question, reading, name)
        source, subfolder = place.passage
        return cls(question, TextEncoder.load(source, dtype=dtype, device=device, subfolder=subfolder), reading, name)

    def save(self, folder: Path) -> None:
        """Write the retriever so that `load` reads it: encoders in transformers' format, and the form of their texts.

        Raises:
            SaveFailed: the folder cannot be written, or holds something else; its content is unchanged.
        """
        with atomic_folder(folder, OURS) as scratch:
            if self.shared:
                self.passage.save(scratch / SHARED)
            else:
                self.question.save(scratch / QUESTION)
                self.passage.save(scratch / PASSAGE)
            write_json(scratch / OURS, saved(self.reading, shared=self.shared))

    @property
    def question(self) -> TextEncoder:
        """The encoder of questions."""
        return self.own_question or self.passage

    @property
    def shared(self) -> bool:
        """Whether one encoder serves questions and passages."""
        return self.own_question is None

    def fingerprint(self) -> str:
        """Return a hash of the weights and the form of texts; vectors of two fingerprints cannot be compared."""
        towers = (
            [self.passage.fingerprint()] if self.shared else [self.question.fingerprint(), self.passage.fingerprint()]
        )
        return blake2b(json.dumps([towers, asdict(self.reading)]).encode(), digest_size=16).hexdigest()

    def question_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of questions in the form in which they are read."""
        return self.question.rows(self.reading.questions(texts), self.reading.longest)

    def passage_rows(self, titles: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of passages in the form in which they are read."""
        return self.passage.rows(self.reading.passages(titles, texts), self.reading.longest)

    def question_vectors(self, tokens: Tokens) -> Float[Tensor, "B E"]:
        """Return the vectors of questions, in fp32; gradients reach the weights."""
        return vectors(self.question, tokens, self.reading)

    def passage_vectors(self, tokens: Tokens) -> Float[Tensor, "B E"]:
        """Return the vectors of passages, in fp32; gradients reach the weights."""
        return vectors(self.passage, tokens, self.reading)

    def encode_questions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of questions [N, E], the same in any batch up to rounding; long ones are cut."""
        with _measuring(self):
            return self._encoded(self.question, self.question_rows(texts))

    def encode_passages(self, titles: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of passages [N, E], the same in any batch up to rounding; long ones are cut."""
        with _measuring(self):
            return self._encoded(self.passage.cast_to_compute(), self.passage_rows(titles, texts))

    def _encoded(self, tower: TextEncoder, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        found = np.empty((len(rows), self.dimension), np.float32)
        budget = POSITIONS_OF_CPU if tower.device.type == "cpu" else POSITIONS
        for group in by_length(range(len(rows)), lambda number: len(rows[number]), budget):
            tokens = tower.padded([rows[number] for number in group])
            found[group] = vectors(tower, tokens, self.reading).cpu().numpy()
        return found


def vectors(tower: TextEncoder, tokens: Tokens, reading: TextForm) -> Float[Tensor, "B E"]:
    """Return one vector of each text, in fp32."""
    states = tower.states(tokens)
    pooled = states[:, 0] if reading.pooling == CLS else _mean(states, tokens.mask)
    return F.normalize(pooled, dim=-1) if reading.normalised else pooled


def in_batch_loss(
    questions: Float[Tensor, "B E"], passages: Float[Tensor, "N E"], positives: Int[Tensor, "B"], scale: float = 1.0
) -> Float[Tensor, ""]:
    """Return the cross-entropy of each question's own passage among all of the batch, summed over the questions.

    Source: Karpukhin et al. 2020, section 3.2 (in-batch negatives).

    Args:
        passages: the positives and the hard negatives of all questions, in any order.
        positives: the index of each question's own passage.
        scale: factor of the scores; scores of unit vectors are too close without it (sentence-transformers: 20).
    """
    return F.cross_entropy(scale * questions @ passages.T, positives, reduction="sum")


def _mean(states: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B E"]:
    if mask is None:
        return states.mean(1)
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1)


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off within, also in the middle of training."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)


@dataclass(frozen=True, slots=True)
class EncoderSources:
    """Names and subfolders of a retriever's encoders; the same one twice if one encoder serves as both."""

    question: tuple[str, str]
    passage: tuple[str, str]
    reading: TextForm


def find_encoders(name: str) -> EncoderSources:
    """Return where the encoders of a retriever are, and how they read texts.

    Raises:
        SourceNotFound, HubUnreachable: nothing is there by that name.
        UsageError: it is a retriever of an unsupported kind.
        CorruptFile: its description is broken.
    """
    if "|" in name:
        question, _, passage = name.partition("|")
        return EncoderSources((question, ""), (passage, ""), find_encoders(passage).reading)
    ours = _json_of(name, OURS)
    if ours is not None:
        return _our_place(name, ours)
    modules = _json_of(name, MODULES)
    if modules is not None:
        return _place_of_modules(name, modules)
    with hub_errors(name):
        config = AutoConfig.from_pretrained(locate(name))
    return _dpr_place(name) if config.model_type == DPR else EncoderSources((name, ""), (name, ""), TextForm())


def saved(reading: TextForm, *, shared: bool) -> dict[str, Any]:
    """Return the description that is saved beside the encoders of a retriever."""
    return {"format": FORMAT, "version": VERSION, "shared": shared, "reading": asdict(reading)}


def reading_from_json(values: Any, what: str) -> TextForm:
    """Return the form of texts that was saved as JSON.

    Raises:
        CorruptFile: the JSON is not such a form.
    """
    try:
        return TextForm(**{item.name: values[item.name] for item in fields(TextForm)})
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{what} does not say how texts are read ({error!r}): make it again") from error


def _our_place(name: str, content: Any) -> EncoderSources:
    content = content if isinstance(content, dict) else {}
    check_format(content, (FORMAT, VERSION), name, "train it again")
    reading = reading_from_json(content.get("reading"), f"{name}/{OURS}")
    question, passage = (SHARED, SHARED) if content.get("shared") else (QUESTION, PASSAGE)
    return EncoderSources((name, question), (name, passage), reading)


def _dpr_place(name: str) -> EncoderSources:
    """Return DPR's two encoders by the name of one; a name of neither is both, as in Spider (Ram et al. 2022)."""
    question, passage = name, name
    for mark in PAIRS:
        if mark in name:
            question, passage = (name.replace(mark, other) for other in PAIRS)
    return EncoderSources((question, ""), (passage, ""), DPR_READING)


def _place_of_modules(name: str, modules: Any) -> EncoderSources:
    """Return the encoder of a sentence-transformers model: a transformer, a pooling, and optionally a normalisation."""
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"{name} is a sentence-transformers model of {', '.join(kinds)}: only Transformer, Pooling and "
            "Normalize are supported"
        )
    body, pooling = modules[0]["path"], _json_of(name, f"{modules[1]['path']}/config.json") or {}
    limits = _json_of(name, f"{body}/sentence_bert_config.json".removeprefix("/")) or {}
    prompts = (_json_of(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    reading = TextForm(
        _pooling_of(name, pooling),
        normalised=len(kinds) > 2,
        longest=limits.get("max_seq_length") or USUAL,
        question_prefix=_first(prompts, QUERY_PROMPTS),
        passage_prefix=_first(prompts, PASSAGE_PROMPTS),
    )
    return EncoderSources((name, body), (name, body), reading)


def _pooling_of(name: str, config: dict[str, Any]) -> str:
    flags = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    chosen = [mode for mode, flag in flags.items() if config.get(flag) or config.get("pooling_mode") == mode]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or any(key not in flags.values() for key in others):
        raise UsageError(
            f"{name} pools by {', '.join(others) or 'nothing known'}: only {' and '.join(POOLINGS)} are supported"
        )
    return chosen[0]


def _first(prompts: dict[str, str], names: Sequence[str]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")


def _json_of(name: str, file: str) -> Any:
    """Return a JSON file of a folder or hub repository; None if it has no such file."""
    with hub_errors(name):
        path = cached_file(locate(name), file, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error
