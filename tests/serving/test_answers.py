"""Answers with what they come from, uploads, embeddings and re-ranking, over HTTP: as the library gives them."""

import base64
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pdfs import save_pdf
from rankers import PASSAGES, QUESTION
from served import LONGEST, kept, prompt
from shoulders import answering
from shoulders.answering.spec import AnswerSpec
from shoulders.data.readers import QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.evidence.choice import EvidenceChoice
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.building import build
from shoulders.retrieval.cross_encoder import load_ranker
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.scoring import Pair

ASKED = "Who lives in Rome?"
PETS = {"Rome": "cat", "Bern": "bear"}
CHOICES = ["a cat", "the emperor of all the cats", "nobody"]


def events(response):
    """What a stream holds; its last line is the end."""
    lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("name", ["bare", "prefix", "reader", "unsure", "textual", "cascade"])
def test_an_answer_is_the_librarys_with_what_it_comes_from(http, lm, saved, name):
    source = "bare" if name == "bare" else str(saved / name)
    wanted = answering.open(source, lm=lm).ask(ASKED)
    found = http.post("/v1/answer", json={"model": name, "question": ASKED}).json()
    assert (found["said"], found["answer"]) == (wanted.text, wanted.answer)
    assert found["probability"] == pytest.approx(wanted.probability, rel=1e-3)
    assert found["passes"] == found["usage"]["lm_passes"] == wanted.passes
    assert found["threshold"] == wanted.least
    assert [one["text"] for one in found["passages"]] == [one.text for one in wanted.passages]
    assert [one["read"] for one in found["passages"]] == [one["read"] for one in wanted.as_json()["passages"]]
    assert [one["text"] for one in found["candidates"]] == [one.text for one in wanted.candidates]
    assert found["stage"] == (2 if name == "cascade" else None)
    if name == "unsure":
        assert found["answer"] is None
    if name == "reader":
        assert found["passages"][0]["title"] == "Rome"


@pytest.mark.parametrize("name", ["prefix", "reader", "cascade"])
def test_a_streamed_answer_ends_with_the_whole_one(http, name):
    asked = {"model": name, "question": ASKED}
    whole = http.post("/v1/answer", json=asked).json()
    with http.stream("POST", "/v1/answer", json={**asked, "stream": True}) as response:
        told = events(response)
    assert told[-1]["type"] == "answer"
    changing = ("id", "created", "seconds", "usage")  # the cache has served the second one
    assert {key: told[-1][key] for key in whole if key not in changing} == {
        key: whole[key] for key in whole if key not in changing
    }
    if name != "cascade":
        assert "".join(one["text"] for one in told if one["type"] == "delta") == whole["said"]
    assert [one["type"] for one in told if one["type"] == "evidence"] == ["evidence"] * (name == "reader")


@pytest.mark.parametrize("name", ["prefix", "reader", "cascade"])
def test_choices_are_ranked(http, lm, saved, name):
    wanted = answering.open(str(saved / name), lm=lm).ask(ASKED, CHOICES)
    found = http.post("/v1/answer", json={"model": name, "question": ASKED, "choices": CHOICES}).json()
    assert found.get("said") == wanted.text, found
    assert found["probability"] == pytest.approx(wanted.probability, rel=1e-3)
    if name != "cascade":
        assert sum(one["probability"] for one in found["choices"]) == pytest.approx(1)
        assert max(found["choices"], key=lambda one: one["probability"])["text"] == wanted.text


def test_answers_are_drawn_with_a_seed(http):
    def said(seed: int, **how: object) -> str:
        asked = {"model": "prefix", "question": QUESTION, "max_tokens": 12, "seed": seed, **how}
        return http.post("/v1/answer", json=asked).raise_for_status().json()["said"]

    assert said(7, temperature=1) == said(7, temperature=1) != said(8, temperature=1)
    assert said(7) == said(8)  # greedy


@pytest.mark.parametrize("asked", [{"model": "cascade"}, {"model": "bare", "choices": ["yes", "no"]}])
def test_what_is_not_drawn_takes_no_temperature(http, asked):
    told = http.post("/v1/answer", json={"question": QUESTION, "temperature": 0.5, **asked})
    assert (told.status_code, told.json()["error"]["param"]) == (400, "temperature")


def test_uploaded_documents_are_asked_by_any_model_and_name_their_page(http, tmp_path):
    save_pdf(tmp_path / "animals.pdf", [["Nobody lives in Lima."], ["A quagga lives in Quito."]])
    files = [("file", ("../../animals.pdf", (tmp_path / "animals.pdf").read_bytes()))]
    kept = http.post("/v1/documents", files=[*files, ("file", ("empty.txt", b"  "))])
    assert kept.status_code == 201
    upload = kept.json()
    assert (upload["documents"], upload["passages"]) == (1, 1)
    assert "empty.txt" in upload["skipped"][0]["place"]
    for name in ("bare", "prefix", "reader"):
        found = http.post(
            "/v1/answer", json={"model": name, "question": "Who lives in Quito?", "documents": upload["id"]}
        ).json()
        assert "quagga" in found["passages"][0]["text"], name
        assert found["passages"][0]["page"] in (1, 2)
        assert found["passages"][0]["title"].startswith("animals")
    assert upload["id"] in [one["id"] for one in http.get("/v1/documents").json()["data"]]
    assert http.delete(f"/v1/documents/{upload['id']}").json()["deleted"]
    gone = http.post("/v1/answer", json={"model": "bare", "question": "Who?", "documents": upload["id"]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "documents_not_found")


def test_texts_are_documents_too(http):
    upload = http.post("/v1/documents", json={"texts": ["An okapi lives in Bonn."], "name": "mine"}).json()
    found = http.post(
        "/v1/answer", json={"model": "reader", "question": "Who lives in Bonn?", "documents": upload["id"]}
    ).json()
    assert found["passages"][0]["text"] == "An okapi lives in Bonn."
    refused = http.post("/v1/answer", json={"model": "cascade", "question": "Who?", "documents": upload["id"]})
    assert refused.json()["error"]["code"] == "unsupported"


def test_embeddings_are_the_retrievers_in_both_formats(http, client, saved):
    encoder = BiEncoder.load(str(saved / "tower"), device="cpu")
    texts = ["who was the first king", "cod is a fish"]
    wanted = encoder.encode_questions(texts)
    found = client.embeddings.create(model="encoder", input=texts)  # as base64, which OpenAI's client asks for
    np.testing.assert_allclose([one.embedding for one in found.data], wanted, rtol=1e-5)
    plain = http.post(
        "/v1/embeddings", json={"model": "encoder", "input": texts[1], "task": "retrieval.passage"}
    ).json()
    passage = encoder.encode_passages([""], texts[1:])[0]
    np.testing.assert_allclose(plain["data"][0]["embedding"], passage, rtol=1e-4)
    coded = http.post("/v1/embeddings", json={"model": "encoder", "input": texts, "encoding_format": "base64"}).json()
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4"), wanted[0], rtol=1e-5
    )
    assert found.usage.prompt_tokens == sum(map(len, encoder.question_rows(texts)))
    assert http.post("/v1/embeddings", json={"model": "encoder", "input": "a", "dimensions": 7}).status_code == 400


def test_documents_are_ranked_as_by_the_reranker(http, saved):
    scores = load_ranker(str(saved / "reranker"), device="cpu").scores(
        [Pair(QUESTION, title, text) for title, text in PASSAGES]
    )
    documents = [{"title": title, "text": text} for title, text in PASSAGES]
    asked = {"model": "reranker", "query": QUESTION, "documents": documents}
    found = http.post("/v1/rerank", json=asked).json()
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    assert [one["index"] for one in found["results"]] == order
    assert found["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-max(scores))), rel=1e-4)
    assert found["results"][0]["document"]["text"] == PASSAGES[order[0]][1]
    assert found["usage"]["total_tokens"] > sum(len(text.split()) for _, text in PASSAGES)
    for path in ("/rerank", "/v2/rerank"):
        top = http.post(path, json={**asked, "top_n": 1, "return_documents": False}).json()
        assert top["results"] == [{key: found["results"][0][key] for key in ("index", "relevance_score")}]


def test_an_index_that_goes_away_is_told_and_nothing_else_stops(http, lm, saved, server):
    """The store of the passages is closed, as by a disk that fails."""
    reader = server.service.models.get("reader").opened
    server.service.models.add("moved", str(saved / "reader"))
    server.service.models.get("moved").opened.evidence.index.store._file.close()
    found = http.post("/v1/answer", json={"model": "moved", "question": ASKED})
    assert (found.status_code, found.json()["error"]["code"]) == (503, "evidence_unavailable")
    assert found.headers["retry-after"]
    assert reader is not server.service.models.get("moved").opened
    assert http.post("/v1/answer", json={"model": "reader", "question": ASKED}).status_code == 200
    server.service.models.remove("moved")


def test_an_index_that_is_built_anew_meanwhile_is_read_all_along(http, lm, saved, server):
    folder = saved / "changing"
    rows = [{"id": city, "title": city, "text": f"In {city} lives a {pet}."} for city, pet in PETS.items()]

    def build_with(pet):
        changed = [{**row, "text": f"In {row['title']} lives a {pet}."} for row in rows]
        (saved / "changing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        build([str(saved / "changing.jsonl")], folder, Cutting(), as_is=True)

    build_with("dog")
    reading = EvidenceChoice("retrieved", index=str(folder), passages=2)
    spec = AnswerSpec(QUESTION_WORDING, reading, Lengths(150, 8), LONGEST)
    kept(prompt(lm, 4), lm, saved / "changing reader", spec)
    server.service.models.add("changing", str(saved / "changing reader"))

    def asked():
        found = http.post("/v1/answer", json={"model": "changing", "question": ASKED})
        assert found.status_code == 200, found.text
        return {one["text"] for one in found.json()["passages"]}

    texts = asked()
    with ThreadPoolExecutor(1) as pool:
        builds = pool.submit(lambda: [build_with(pet) for pet in ("cat", "cow", "hen")])
        while not builds.done():  # three builds may be over before the first answer
            texts |= asked()
        builds.result()
    texts |= asked()
    assert texts
    assert all(text.startswith("In ") for text in texts)
    server.service.models.remove("changing")
