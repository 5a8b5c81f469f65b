"""Bad input of all kinds ends in a clear error in OpenAI's shape, and the server goes on."""

import gzip
import json
import re
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import UploadFile

from served import running, service_of
from shoulders.engine.requests import Event
from shoulders.serving.config import add_key
from shoulders.serving.service import GrowingText

TYPES = {
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "timeout_error",
    "conflict_error", "rate_limit_error", "internal_error", "unavailable_error", "storage_error",
}  # fmt: skip
COMPLETION = {"model": "prefix", "prompt": "a"}
CHAT = {"model": "prefix", "messages": [{"role": "user", "content": "a"}]}
ANSWER = {"model": "prefix", "question": "a"}
RERANK = {"model": "reranker", "query": "a", "documents": ["b"]}
EMBED = {"model": "encoder", "input": "a"}


def error_of(response):
    """The error of an answer, whose shape is checked."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in TYPES
    assert error["message"]
    assert "\n" not in error["message"]
    assert response.headers["x-request-id"]
    return error


BODIES = [
    ("/v1/completions", {**COMPLETION, "max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 10**30}, 400, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 201}, 400, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "min_tokens": 17}, 400, "min_tokens"),
    ("/v1/completions", {**COMPLETION, "temperature": -1}, 400, "temperature"),
    ("/v1/completions", {**COMPLETION, "top_p": 0}, 400, "top_p"),
    ("/v1/completions", {**COMPLETION, "n": 65}, 400, "n"),
    ("/v1/completions", {**COMPLETION, "stop": [""]}, 400, None),
    ("/v1/completions", {**COMPLETION, "stop": "x" * 1000}, 400, None),
    ("/v1/completions", {**COMPLETION, "seed": 2**64}, 400, "seed"),
    ("/v1/completions", {**COMPLETION, "logprobs": 21}, 400, "logprobs"),
    ("/v1/completions", {**COMPLETION, "echo": True, "logprobs": 1}, 400, None),
    ("/v1/completions", {**COMPLETION, "best_of": 3}, 400, None),
    ("/v1/completions", {**COMPLETION, "suffix": "b"}, 400, "suffix"),
    ("/v1/completions", {**COMPLETION, "logit_bias": {"1": 5}}, 400, "logit_bias"),
    ("/v1/completions", {**COMPLETION, "max_token": 3}, 400, "max_token"),
    ("/v1/completions", {**COMPLETION, "prompt_embeds": "gASV"}, 400, "prompt_embeds"),
    ("/v1/completions", {**COMPLETION, "prompt": ""}, 400, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": []}, 400, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [-1]}, 400, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [10**9]}, 400, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": "word " * 600}, 400, None),
    ("/v1/completions", {**COMPLETION, "model": "../../etc/passwd"}, 404, "model"),
    ("/v1/completions", {**COMPLETION, "model": "x" * 10_000}, 404, "model"),
    ("/v1/completions", {"prompt": "a"}, 400, "model"),
    ("/v1/chat/completions", {**CHAT, "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "assistant", "content": "a"}]}, 400, None),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "tools"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format.type"),
    ("/v1/chat/completions", {**CHAT, "top_logprobs": 99}, 400, "top_logprobs"),
    ("/v1/answer", {**ANSWER, "question": ""}, 400, "question"),
    ("/v1/answer", {**ANSWER, "question": " "}, 400, None),
    ("/v1/answer", {**ANSWER, "choices": [""]}, 400, "choices.0"),
    ("/v1/answer", {**ANSWER, "documents": "../../index"}, 404, "documents"),
    ("/v1/answer", {**ANSWER, "max_tokens": 201}, 400, "max_tokens"),
    ("/v1/answer", {**ANSWER, "model": "reranker"}, 400, "model"),
    ("/v1/embeddings", {**EMBED, "input": []}, 400, None),
    ("/v1/embeddings", {**EMBED, "input": [1, 2]}, 400, None),
    ("/v1/embeddings", {**EMBED, "model": "prefix"}, 400, "model"),
    ("/v1/rerank", {**RERANK, "documents": []}, 400, "documents"),
    ("/v1/rerank", {**RERANK, "top_n": 0}, 400, "top_n"),
    ("/v1/documents", {"texts": ["  "]}, 400, "file"),
    ("/v1/documents", {"text": "a"}, 400, None),
    ("/v1/scaffolds", {"name": "a"}, 400, "path"),
    ("/v1/scaffolds", {"name": "a", "path": "prefix", "role": "x"}, 400, None),
    ("/v1/unload_lora_adapter", {"lora_name": "nobody"}, 404, "model"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), BODIES)
def test_a_field_that_cannot_be_is_named(http, path, body, status, param):
    found = http.post(path, json=body)
    error = error_of(found)
    assert found.status_code == status, error
    if param:
        assert error["param"] == param, error


RAW = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"model": "prefix", "prompt": "\xff\xfe"}',
    "half a character": b'{"model": "prefix", "prompt": "\\ud800"}',
    "half a character as a name": b'{"model": "\\ud800", "prompt": "a"}',
    "half a character as a field": b'{"\\ud800": 1, "model": "prefix", "prompt": "a"}',
    "deep": b"[" * 60_000 + b"]" * 60_000,
    "a list": b"[1, 2]",
    "a number": b"7",
    "a number too long": b'{"model": "prefix", "prompt": "a", "n": ' + b"9" * 5000 + b"}",
    "NaN": b'{"model": "prefix", "prompt": "a", "temperature": NaN}',
    "infinite": b'{"model": "prefix", "prompt": "a", "temperature": 1e999}',
    "null byte": b'{"model": "prefix\\u0000", "prompt": "a"}',
    "twice": b'{"model": "prefix", "model": "nobody", "prompt": "a"}',
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/answer", "/v1/documents", "/v1/load_lora_adapter"])
@pytest.mark.parametrize("name", RAW)
def test_bodies_that_are_no_request_are_refused(http, path, name):
    found = http.post(path, content=RAW[name], headers={"Content-Type": "application/json"})
    assert 400 <= found.status_code < 500, found.text
    error_of(found)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "\xff",
    ],
)
def test_other_types_of_bodies_are_refused(http, kind):
    for path in ("/v1/completions", "/v1/documents"):
        found = http.post(path, content=b"--x\r\nabc", headers={"Content-Type": kind.encode("latin-1")})
        assert 400 <= found.status_code < 500, found.text
        error_of(found)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/models/nobody", 404), ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405), ("GET", "/page/../app.py", 404), ("GET", "/page/%2e%2e%2fapp.py", 404),
        ("GET", "/page/..%5capp.py", 404), ("GET", "/page/.hidden", 404), ("GET", "/page/no.js", 404),
        ("DELETE", "/v1/documents/..%2f..", 404), ("GET", "/v1/models/%ff", 404), ("GET", "/v1/models/a%00b", 404),
    ],
)  # fmt: skip
def test_paths_that_are_not_there(http, method, path, status):
    found = http.request(method, path)
    assert found.status_code == status, found.text
    assert ": " in error_of(found)["message"], "the way out"


def test_files_that_cannot_be_read_are_refused_by_name(http):
    for name, content, said in (
        ("a.exe", b"MZ", "not of a type"), ("a.pdf", b"%PDF-1.4 broken", "nothing in it can be read"),
        ("a.txt", b"\xff" * 3, ""), ("..", b"a", "not of a type"), ("x" * 300 + ".txt", b"fine text", ""),
        ("\u6587" * 100 + ".txt", b"fine text", ""), ("a.jsonl.gz", gzip.compress(b"{}"), "not of a type"),
        ("x.txt" + "y" * 300, b"fine text", "not of a type"),
    ):  # fmt: skip
        found = http.post("/v1/documents", files=[("file", (name, content))])
        assert found.status_code in (201, 400), found.text
        if said:
            assert said in error_of(found)["message"]


@pytest.mark.parametrize("place", [(Path, "write_bytes"), (UploadFile, "write")])
def test_a_full_disk_is_told(http, monkeypatch, place):
    """While a form comes in, and when its files are written."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*place, full)
    found = http.post("/v1/documents", files=[("file", ("a.txt", b"some text"))])
    assert found.status_code == 507
    assert "No space left" in error_of(found)["message"]


def test_a_failure_inside_is_told_by_its_id_and_logged(server, http, monkeypatch, caplog):
    def fails(*_, **__):
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr(server.service.models, "get", fails)
    found = http.post("/v1/completions", json=COMPLETION)
    assert found.status_code == 500
    assert "secret" not in error_of(found)["message"]
    until = time.monotonic() + 5
    while "ZeroDivisionError" not in caplog.text:  # it is logged after the answer
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_request_larger_than_the_pool_is_refused(lm, saved):
    with running(service_of(lm, saved, ("prefix",), memory_bytes=20_000)) as server, server.http() as http:
        found = http.post("/v1/completions", json={**COMPLETION, "prompt": "word " * 50, "max_tokens": 100})
        assert (found.status_code, error_of(found)["code"]) == (400, "pool_too_small")
        assert http.get("/health").status_code == 200


@given(
    st.lists(st.text(alphabet=string.ascii_lowercase[:3] + "é€😀 ", max_size=6), min_size=1, max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_a_growing_text_is_the_whole_text_up_to_the_first_stop(pieces, stops):
    """Tokens are bytes here: characters are passed on whole, and nothing of a stop text is."""

    class Bytes:
        def text(self, ids):
            return bytes(ids).decode(errors="replace")

    content = "".join(pieces)
    growing = GrowingText(Bytes(), 0, stops)
    passed = [growing.add(Event(0, token, -1.0)) for token in content.encode()]
    told = [piece for piece in passed if piece] + [growing.end("stop")]
    text = "".join(piece.text for piece in told)
    # The engine ends a text at the first stop text that is complete.
    ends = [place + len(stop) for stop in stops if (place := content.find(stop)) >= 0]
    whole = content[: min(ends)] if ends else content
    first = min((place for stop in stops if (place := whole.find(stop)) >= 0), default=len(whole))
    assert text == content[:first]
    if not ends:
        assert sum(len(piece.tokens) for piece in told) == len(content.encode())


def test_deployment_files_are_sound_and_the_dashboard_shows_what_there_is(http):
    deploy = Path(__file__).parents[2] / "deploy"
    for path in deploy.rglob("*.y*ml"):
        assert yaml.safe_load(path.read_text()), path
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    assert set(compose["services"]) == {"shoulders", "prometheus", "grafana"}
    dashboard = json.loads((deploy / "grafana" / "dashboards" / "shoulders.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    http.post("/v1/completions", json={**COMPLETION, "max_tokens": 1}).raise_for_status()
    shown = set(re.findall(r"shoulders:\w+", queries))
    assert len(shown) > 10
    missing = shown - set(re.findall(r"^(shoulders:\w+)", http.get("/metrics").text, re.MULTILINE))
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("key", ["none", "right"])
def test_schemathesis_finds_no_failure_of_the_server(lm, saved, tmp_path, key):
    """Requests made from the OpenAPI description, good and bad, with and without a key: no 500, none too slow."""
    keys = tmp_path / "keys.json"
    right = add_key(keys, "admin", admin=True)
    service = service_of(lm, saved, ("prefix", "reader", "reranker"), keys=keys, deadline=10.0, max_tokens=64)
    with running(service) as server, server.http(right) as http:
        described = http.get("/openapi.json").json()
        for schema in described["components"]["schemas"].values():
            if "model" in schema.get("properties", {}):  # names that are served, so that most requests get further
                schema["properties"]["model"]["enum"] = ["prefix", "reader", "reranker", "nobody"]
        (tmp_path / "openapi.json").write_text(json.dumps(described))
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", server.url, "--mode", "all",
            "--checks", "not_a_server_error", "--max-response-time", "12", "--max-examples", "25", "--seed", "1",
            "--phases", "coverage,fuzzing", "--no-color",
            *(["--header", f"Authorization: Bearer {right}"] if key == "right" else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert int(counted[1]) > 500
        assert http.get("/v1/models").status_code == 200
        generated = 'generated_tokens_total{scaffold="prefix"}' in http.get("/metrics").text
        assert generated == (key == "right")
