"""A server over a tiny model in a thread of this process, with a scaffold of each kind."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
import torch

from rankers import save_bert
from served import LONGEST, Running, kept, prompt, running, save_readable, service_of
from shoulders.answering.calibration import Point, Threshold
from shoulders.answering.spec import AnswerSpec
from shoulders.answering.stages import Calibration, Cascade, Stage, save
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.readers import QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Placement
from shoulders.retrieval.building import build
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.reranker import Reranker, RerankerOrigin
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.peft import to_peft
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from toys import layered, moved

PETS = {"Rome": "cat", "Bern": "bear", "Oslo": "elk"}


@pytest.fixture(scope="session")
def lm(folders: Path) -> FrozenLM:
    """A tiny Llama with a chat template."""
    folder = folders / "served"
    save_readable(folder)
    return FrozenLM.load(str(folder), dtype="float32", device="cpu").settled()


@pytest.fixture(scope="session")
def saved(lm: FrozenLM, tiny_encoder: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved model of each kind."""
    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    rows = [{"title": city, "text": f"In {city} lives a {pet}."} for city, pet in PETS.items()]
    (place / "pets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(place / "pets.jsonl")], place / "index", Cutting(), as_is=True)
    reading = EvidenceChoice("retrieved", index=str(place / "index"), passages=2)
    sampled = EvidenceChoice("candidates", "bare", count=3, longest=3)
    worded = AnswerSpec(QUESTION_WORDING, longest=LONGEST)
    reader = AnswerSpec(QUESTION_WORDING, reading, Lengths(150, 8), LONGEST)
    kept(prompt(lm, 1), lm, place / "prefix", worded)
    kept(prompt(lm, 2, Placement.INFIX), lm, place / "infix")
    kept(prompt(lm, 3, Placement.SUFFIX, 5), lm, place / "suffix")
    encoder = tiny_encoder("bert")
    made = InputPrompt(encoder, lm, InputPromptShape(length=4, encoder_length=3, head_width=8))
    kept(made, lm, place / "input")
    layers = layered(lm, tiny_encoder)
    kept(moved(layers["deep suffix"]), lm, place / "deep")
    to_peft(moved(layers["low rank prefix"]), lm, place / "lora")  # in PEFT's format
    kept(Recursion(lm, RecursionShape(layers=1)), lm, place / "twice", worded)
    kept(prompt(lm, 4), lm, place / "reader", reader)
    kept(prompt(lm, 4), lm, place / "unsure", replace(reader, threshold=Threshold(0.9999, 0.99999)))
    kept(prompt(lm, 5), lm, place / "textual", AnswerSpec(QUESTION_WORDING, sampled, Lengths(150, 8), LONGEST))
    stages = (Stage.of(Bare()), Stage.of(Scaffold.load(place / "twice", lm), str(place / "twice")))
    point = Point((-1e-9,), 2.0, 1.0)  # the first stage is never as sure
    calibration = Calibration("probability", 2.0, point, [point], {}, worded.as_json())
    save(place / "cascade", Cascade(stages, point.thresholds), lm, calibration, {})
    tower = save_bert(place / "tower")
    Reranker.start(tower, length=64).save(place / "reranker", RerankerOrigin(tower))
    return place


@pytest.fixture(scope="session")
def server(lm: FrozenLM, saved: Path) -> Iterator[Running]:
    """A server with everything, without keys."""
    names = (
        "prefix",
        "infix",
        "suffix",
        "input",
        "twice",
        "deep",
        "lora",
        "reader",
        "unsure",
        "textual",
        "cascade",
        "reranker",
    )
    service = service_of(lm, saved, names, max_body=200_000, max_tokens=200)
    service.models.add("encoder", str(saved / "tower"), role="retriever")
    with running(service) as found:
        yield found


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    """OpenAI's own client."""
    return server.client()


@pytest.fixture
def http(server: Running) -> Iterator[httpx2.Client]:
    """A plain client, for what OpenAI's does not send."""
    with server.http() as found:
        yield found
