"""Models at run time, keys, limits, deadlines, clients that leave, and the end of the process."""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx2
import openai
import pytest
import torch

from served import kept, prompt, running, service_of
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.serve import _models
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import generate
from shoulders.engine.scheduler import Scheduler
from shoulders.errors import CorruptFile, UsageError
from shoulders.records import Question
from shoulders.scaffolds.peft import to_peft
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.serving.app import create_app
from shoulders.serving.config import ApiKey, ServerConfig, add_key, read_keys
from shoulders.serving.http import ApiError, Keys
from shoulders.serving.service import Service
from tiny import TEXTS, save_lm

SLOW = "word " * 60


def text_of(client, name, prompt=TEXTS[0], **how):
    settings = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": 12, **how}
    return client.completions.create(**settings).choices[0].text


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A file of keys, and the keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    limits = {
        "user": {}, "admin": {"admin": True}, "few": {"requests_per_minute": 2}, "short": {"tokens_per_minute": 20},
        "one": {"at_once": 1},
    }  # fmt: skip
    return path, {name: add_key(path, name, **some) for name, some in limits.items()}


@pytest.fixture(scope="module")
def guarded(lm, saved, keys):
    """A server with keys, few rows, a short queue and small bounds."""
    service = service_of(
        lm, saved, ("prefix", "twice"), keys=keys[0], queue=2, rows=1, deadline=20.0, body_seconds=1.0,
        max_body=20_000, max_upload=50_000, max_tokens=400,
    )  # fmt: skip
    with running(service) as found:
        yield found


def test_scaffolds_come_and_go_while_it_runs(server, http, client, lm, saved):
    """Ours and vLLM's names; a replaced scaffold answers differently, and never from what was kept of the old one."""
    kept(prompt(lm, 20), lm, saved / "new")
    record = http.post("/v1/scaffolds", json={"name": "new", "path": "new"})
    assert record.status_code == 201
    assert record.json()["kind"] == "soft_prompt"
    before = text_of(client, "new")
    assert http.post("/v1/scaffolds", json={"name": "new", "path": "new"}).status_code == 409
    kept(prompt(lm, 21), lm, saved / "new")
    assert text_of(client, "new") == before  # loaded once
    http.post("/v1/scaffolds", json={"name": "new", "path": str(saved / "new"), "replace": True}).raise_for_status()
    after = text_of(client, "new")
    assert after != before
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "adapter", "lora_path": str(saved / "lora")})
    assert loaded.text == "Success: LoRA adapter 'adapter' added successfully."
    assert text_of(client, "adapter") == text_of(client, "lora")
    http.post("/v1/unload_lora_adapter", json={"lora_name": "adapter"}).raise_for_status()
    assert http.delete("/v1/scaffolds/new").json() == {"name": "new", "deleted": True}
    for name in ("adapter", "new"):
        with pytest.raises(openai.NotFoundError):
            text_of(client, name)
    assert http.delete("/v1/scaffolds/bare").status_code == 400


@pytest.mark.filterwarnings("ignore:the weights of")
@pytest.mark.parametrize(("asked", "found"), [(None, "nf4"), ("", ""), ("int8", "int8")])
def test_the_backbone_is_quantised_as_for_the_training_or_as_asked(lm, tmp_path, asked, found):
    packed = FrozenLM.load(lm.name, dtype="float32", device="cpu", quantize="nf4")
    kept(prompt(packed, 6), packed, tmp_path / "trained")
    names = [(str(tmp_path / "trained"), "")]
    config = ServerConfig(port=0)
    models = _models(config, names, backbone="", dtype="float32", quantize=asked, index="")
    assert models.lm.quantized == found
    with running(Service(models.lm, Scheduler(models.lm), models, config)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        scaffold = models.get("trained").scaffold
        given = question_batch([encode(Question(TEXTS[0]), models.lm)], models.lm, scaffold)
        (direct,) = generate(models.lm, scaffold, given, longest=12)
        assert text_of(client, "trained") == models.lm.text(direct)


def test_scaffolds_with_the_same_encoder_hold_it_once(lm, saved):
    models = service_of(lm, saved, ("input",)).models
    models.add("again", str(saved / "input"))
    first, again = (models.get(name).scaffold for name in ("input", "again"))
    assert first is not again
    assert first.encoder is again.encoder


def test_a_running_request_ends_with_the_scaffold_that_it_began_with(server, http, client, lm, saved):
    kept(prompt(lm, 30), lm, saved / "old")
    http.post("/v1/scaffolds", json={"name": "old", "path": "old"}).raise_for_status()
    wanted = text_of(client, "old", max_tokens=150)
    stream = client.completions.create(model="old", prompt=TEXTS[0], temperature=0, max_tokens=150, stream=True)
    pieces = [next(stream).choices[0].text]
    kept(prompt(lm, 31), lm, saved / "old")
    http.post("/v1/scaffolds", json={"name": "old", "path": "old", "replace": True}).raise_for_status()
    pieces += [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == wanted != text_of(client, "old", max_tokens=150)
    http.delete("/v1/scaffolds/old")


def test_a_broken_scaffold_is_named_and_the_rest_is_served(http, lm, saved, folders, tmp_path):
    broken = prompt(lm, 1)
    with torch.no_grad():
        broken.prompt[1, 2] = torch.nan
    kept(broken, lm, saved / "nan")
    (saved / "empty").mkdir(exist_ok=True)
    if not (folders / "qwen2").exists():
        save_lm("qwen2", folders / "qwen2")
    from shoulders.backbone.frozen import FrozenLM

    other = FrozenLM.load(str(folders / "qwen2"), dtype="float32", device="cpu")
    kept(prompt(other, 1), other, saved / "foreign")
    wide = SoftPrompt(torch.ones(2, lm.width + 8))
    wide_lm = SimpleNamespace(name="wide", width=lm.width + 8, config=lm.config)
    to_peft(wide, wide_lm, saved / "wide")
    for name, status, said in (
        ("wide", 400, "have width 40"),
        ("nan", 400, "1 of 96 values of prompt that are not finite"),
        ("empty", 404, "config.json is missing"),
        ("foreign", 400, "load the backbone it was trained around"),
        ("nowhere", 404, "there is no folder 'nowhere'"),
    ):
        found = http.post("/v1/scaffolds", json={"name": name, "path": name})
        assert found.status_code == status, found.text
        assert said in found.json()["error"]["message"]
    service = service_of(lm, saved, ("prefix",))
    service.models.try_add("nan", str(saved / "nan"))
    assert "not finite" in service.models.broken["nan"][1]
    assert [one.name for one in service.models] == ["bare", "prefix"]


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", "prefix/../../outside", "link", "~", ".", "", "org/name", "a\0b"]
)
def test_nothing_outside_the_allowed_folders_is_loaded(http, lm, saved, path):
    kept(prompt(lm, 1), lm, saved.parent / "outside")
    if not (saved / "link").is_symlink():
        (saved / "link").symlink_to(saved.parent / "outside")
    found = http.post("/v1/load_lora_adapter", json={"lora_name": "out", "lora_path": path})
    assert found.status_code in (403, 404), found.text
    assert "out" not in [card["id"] for card in http.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("name", ["../x", "a/../b", "", ".hidden", "a b", "x" * 300, "a//b", "x:first", "bare"])
def test_names_that_could_be_paths_are_refused(http, name):
    found = http.post("/v1/scaffolds", json={"name": name, "path": "prefix", "replace": True})
    assert found.status_code in (400, 409), found.text


def test_keys_are_asked_for_and_only_the_admins_changes_what_is_served(guarded, keys):
    _, known = keys
    with guarded.http() as nobody, guarded.http("sk-wrong") as wrong, guarded.http(known["user"]) as user:
        for client, code in ((nobody, "missing_api_key"), (wrong, "invalid_api_key")):
            for path in ("/v1/models", "/v1/nothing", "/v1/scaffolds", "/rerank"):
                found = client.get(path)
                assert (found.status_code, found.json()["error"]["code"]) == (401, code)
        assert [nobody.get(path).status_code for path in ("/health", "/ready", "/metrics", "/v1/info")] == [200] * 4
        assert user.get("/v1/models").status_code == 200
        for method, path, body in (
            ("GET", "/v1/scaffolds", None), ("POST", "/v1/scaffolds", {"name": "a", "path": "a"}),
            ("DELETE", "/v1/scaffolds/prefix", None),
            ("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "a"}),
            ("POST", "/v1/unload_lora_adapter", {"lora_name": "prefix"}),
        ):  # fmt: skip
            assert user.request(method, path, json=body).json()["error"]["code"] == "admin_only"
    assert text_of(guarded.client(known["admin"]), "prefix")
    stored = keys[0].read_text()
    assert not any(key in stored for key in known.values())


def test_an_upload_is_its_owners(guarded, keys):
    with guarded.http(keys[1]["user"]) as user, guarded.http(keys[1]["admin"]) as other:
        upload = user.post("/v1/documents", json={"texts": ["A secret."]}).json()["id"]
        asked = {"model": "bare", "question": "What?", "documents": upload}
        assert user.post("/v1/answer", json=asked).status_code == 200
        assert other.post("/v1/answer", json=asked).status_code == 404
        assert other.get("/v1/documents").json()["data"] == []
        assert other.delete(f"/v1/documents/{upload}").status_code == 404


def test_limits_of_a_key(guarded, keys):
    _, known = keys
    few = guarded.client(known["few"])
    assert len(list(few.models.list())) == len(list(few.models.list())) == 3
    with pytest.raises(openai.RateLimitError, match="2 requests a minute") as caught:
        few.models.list()
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    short = guarded.client(known["short"])
    text_of(short, "prefix", max_tokens=30, extra_body={"min_tokens": 30})
    with pytest.raises(openai.RateLimitError, match="20 tokens a minute"):
        text_of(short, "prefix")
    one = guarded.client(known["one"])
    asked = {"model": "bare", "prompt": "a", "max_tokens": 400, "extra_body": {"min_tokens": 400}}
    with one.completions.create(**asked, stream=True) as running_one:
        next(iter(running_one))
        with pytest.raises(openai.RateLimitError, match="it may have 1"):
            one.models.list()


def test_what_a_key_has_used_comes_back_with_time():
    now = [0.0]
    keys = Keys(ServerConfig(), clock=lambda: now[0])
    key = ApiKey(name="a", hash="", requests_per_minute=6, tokens_per_minute=60)
    for _ in range(6):
        keys.enter(key)
        keys.leave(key, 5)
    with pytest.raises(ApiError, match="6 requests a minute: try again in 10 s"):
        keys.enter(key)
    now[0] = 10.0
    keys.enter(key)
    keys.leave(key, 200)
    now[0] = 60.0
    with pytest.raises(ApiError, match="60 tokens a minute"):
        keys.enter(key)
    now[0] = 600.0
    for _ in range(6):  # never more than a minute's worth
        keys.enter(key)
    with pytest.raises(ApiError):
        keys.enter(key)


def test_keys_change_while_it_runs(tmp_path):
    path = tmp_path / "keys.json"
    first = add_key(path, "a")
    keys = Keys(ServerConfig(keys=path))
    assert keys.key_of(f"Bearer {first}").name == "a"
    second = add_key(path, "a", requests_per_minute=5)  # replaces it
    assert keys.key_of(f"bearer {second}").requests_per_minute == 5
    with pytest.raises(ApiError, match="not one of this server's"):
        keys.key_of(f"Bearer {first}")
    path.write_text("{")
    assert keys.key_of(f"Bearer {second}").name == "a"
    with pytest.raises(CorruptFile):
        read_keys(path)


def test_a_full_queue_is_told_with_when_to_come_again(guarded, keys):
    """One row and two places to wait: of many requests most are refused at once, and none is lost."""
    client = guarded.client(keys[1]["user"])

    def ask(_):
        try:
            return text_of(client, "prefix", max_tokens=100)
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    refused = [one for one in found if isinstance(one, Exception)]
    assert refused
    assert {error.code for error in refused} == {"queue_full"}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert len(set(found) - set(refused)) == 1


def test_a_client_that_leaves_frees_its_place(guarded, keys):
    """In a stream and while it waits for the whole answer."""
    body = {"model": "prefix", "prompt": SLOW, "max_tokens": 300, "min_tokens": 300, "temperature": 0}
    stats = guarded.service.engine.stats
    with guarded.http(keys[1]["user"]) as http:
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            next(response.iter_lines())
            assert stats().running == 1
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=0.1)
    until = time.monotonic() + 10
    while (left := stats().running) and time.monotonic() < until:
        time.sleep(0.01)
    assert left == 0
    while 'status="499"' not in httpx2.get(f"{guarded.url}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_deadline_ends_a_request_and_a_stream(lm, saved):
    service = service_of(lm, saved, ("prefix",), deadline=0.3, max_tokens=400)
    body = {"model": "prefix", "prompt": SLOW, "max_tokens": 400, "min_tokens": 400, "n": 8}
    with running(service) as server, server.http() as http:
        started = time.monotonic()
        found = http.post("/v1/completions", json=body)
        assert time.monotonic() - started < 2
        assert (found.status_code, found.json()["error"]["type"]) == (504, "timeout_error")
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_a_client_that_does_not_read_holds_nobody_up(lm, saved):
    """Its rows are free as soon as its text has ended, and its request ends at the deadline."""
    service = service_of(lm, saved, ("prefix",), deadline=3.0)
    gate, stats = create_app(service), service.engine.stats
    body = json.dumps({"model": "prefix", "prompt": "a", "max_tokens": 20, "min_tokens": 20, "n": 4, "stream": True})
    unread = [{"type": "http.request", "body": body.encode(), "more_body": False}]

    async def receive():
        return unread.pop() if unread else await asyncio.Event().wait()

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def ask():
        json_type = (b"content-type", b"application/json")
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [json_type],
            "query_string": b"",
        }
        asked = asyncio.ensure_future(gate(scope, receive, stuck))
        while not stats().finished:
            assert not asked.done(), asked.result()
            await asyncio.sleep(0.01)
        assert (stats().tokens, stats().running) == (80, 0)
        assert not asked.done()
        await asked

    service.start()
    try:
        asyncio.run(asyncio.wait_for(ask(), 30))
    finally:
        service.stop()


def test_slow_and_large_bodies_are_ended(guarded, keys):
    """A body that does not come, one that is too large by its own word, and one that turns out to be."""
    host, port = guarded.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {keys[1]['user']}\r\n"

    def answer_to(request, more=b""):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request.encode() + more)
            return connection.recv(100_000).decode()

    assert " 408 " in answer_to(f"{head}Content-Length: 100\r\n\r\n", b"{")
    assert " 413 " in answer_to(f"{head}Content-Length: 99999999\r\n\r\n")
    large = b"".join(b"1000\r\n" + b"x" * 4096 + b"\r\n" for _ in range(8))
    assert " 413 " in answer_to(f"{head}Transfer-Encoding: chunked\r\n\r\n", large)
    with guarded.http(keys[1]["user"]) as http:
        found = http.post("/v1/documents", files=[("file", ("a.txt", b"a" * 60_000))])
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")
        assert http.post("/v1/documents", files=[("file", ("a.txt", b"word " * 6_000))]).status_code == 201


def test_other_addresses_need_keys():
    with pytest.raises(UsageError, match="--keys FILE"):
        ServerConfig(host="0.0.0.0")
    for host in ("127.0.0.1", "localhost", "::1"):
        assert ServerConfig(host=host).keys is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Host": "localhost:8000"}, 200), ({"Host": "[::1]:8000"}, 200), ({"Host": "127.0.0.1"}, 200),
        ({"Origin": "http://localhost:3000"}, 200), ({"Host": "rebound.example"}, 403), ({"Host": "[oh"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403), ({"Origin": "null"}, 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_reach_no_server_without_keys(http, headers, status):
    found = http.get("/v1/models", headers=headers)
    assert found.status_code == status
    if status == 403:
        assert "--keys" in found.json()["error"]["message"]


def test_a_server_with_keys_answers_under_any_name(guarded, keys):
    with guarded.http(keys[1]["user"]) as http:
        assert http.get("/v1/models", headers={"Host": "llm.example", "Origin": "https://llm.example"}).is_success


def test_nothing_is_held_for_a_client_that_left_before_its_turn(server):
    class Large:
        pass

    async def leave():
        service, begun, go_on = server.service, threading.Event(), threading.Event()
        running = asyncio.create_task(service.in_thread(lambda: (begun.set(), go_on.wait(30)), heavy=True))
        await asyncio.to_thread(begun.wait, 30)
        large = Large()
        held = weakref.ref(large)
        waiting = asyncio.create_task(service.in_thread(lambda _: None, large, heavy=True))
        del large
        await asyncio.sleep(0.05)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        del waiting
        await asyncio.sleep(0.05)
        gc.collect()
        alive = held() is not None
        go_on.set()
        await running
        return alive

    assert not asyncio.run(leave())


def test_a_server_whose_engine_has_died_is_not_ready(lm, saved, monkeypatch):
    with running(service_of(lm, saved, ("prefix",))) as found, found.http() as http:
        assert http.get("/ready").status_code == 200
        monkeypatch.setattr(found.service.engine, "step", lambda: sys.exit())
        told = http.post("/v1/completions", json={"model": "prefix", "prompt": "a b"})
        assert (told.status_code, told.json()["error"]["code"]) == (503, "stopped")
        found.service.engine._thread.join(10)
        told = http.get("/ready")
        assert (told.status_code, told.json()["error"]["code"]) == (503, "not_ready")
        assert "thread has ended" in told.json()["error"]["message"]
        assert http.get("/health").status_code == 200
        monkeypatch.undo()


def test_metrics_count_what_happens(server, client, http):
    def number(name):
        found = re.search(rf"^shoulders:{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = (
        'generated_tokens_total{scaffold="suffix"}',
        'time_to_first_token_seconds_count{scaffold="suffix"}',
        "passes_total",
    )
    before = [number(name) for name in names]
    text_of(client, "suffix", "A text that was never read before.", max_tokens=7, extra_body={"min_tokens": 7})
    after = [number(name) for name in names]
    assert after[0] - before[0] == 7
    assert after[1] - before[1] == 1
    assert after[2] > before[2]
    assert number("scaffolds") == len(list(server.service.models))
    assert number('requests_total{endpoint="/v1/completions",scaffold="suffix",status="200"}') > 0


def test_the_log_has_ids_and_no_text_unless_asked(lm, saved, caplog):
    for log_text in (False, True):
        caplog.clear()
        caplog.set_level("INFO", "shoulders.serving")
        with running(service_of(lm, saved, ("prefix",), log_text=log_text)) as server:
            found = httpx2.post(
                f"{server.url}/v1/completions",
                json={"model": "prefix", "prompt": "Say a secret.", "max_tokens": 3, "min_tokens": 3},
                headers={"X-Request-Id": "mine-1"},
            )  # fmt: skip
            assert found.headers["x-request-id"] == "mine-1"
            assert re.fullmatch(
                "[0-9a-f]{32}",
                httpx2.get(f"{server.url}/health", headers={"X-Request-Id": "a b\n"[:3]}).headers["x-request-id"],
            )
        fields = next(record.fields for record in caplog.records if getattr(record, "fields", {}).get("id") == "mine-1")
        assert (fields["status"], fields["model"], fields["generated_tokens"]) == (200, "prefix", 3)
        assert ("secret" in str(fields)) == log_text


@pytest.mark.slow
def test_the_command_serves_and_ends_running_answers_at_sigterm(lm, saved, tmp_path):
    """`shoulders serve` in a process of its own: an answer that runs when SIGTERM comes is whole, then it ends."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2] / 'src'}", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "shoulders",
        "serve",
        str(saved / "prefix"),
        f"broken={saved / 'index'}",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith("not served: broken")
        url = re.search(r"http://\S+:\d+", process.stdout.readline())[0]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        settings = {
            "model": "prefix",
            "prompt": TEXTS[0],
            "temperature": 0,
            "max_tokens": 200,
            "extra_body": {"min_tokens": 200},
        }
        wanted = client.completions.create(**settings).choices[0].text
        stream = client.completions.create(**settings, stream=True)
        pieces = [next(stream).choices[0].text]
        process.send_signal(signal.SIGTERM)
        pieces += [chunk.choices[0].text for chunk in stream]
        assert "".join(pieces) == wanted
        assert process.wait(30) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert any(line["event"] == "request" and line.get("model") == "prefix" for line in lines)
    finally:
        process.kill()
        process.communicate()


def test_only_threads_that_compute_and_end_have_the_cores_beside_the_engine(lm, saved, monkeypatch):
    monkeypatch.setattr("shoulders.serving.service.CORES", 3)

    def told():
        return threading.current_thread(), torch.get_num_threads()

    with running(service_of(lm, saved, ())) as server:
        loop = asyncio.new_event_loop()
        waiting, cores = loop.run_until_complete(server.service.in_thread(told))
        assert (cores, waiting.is_alive()) == (1, True)
        computing, cores = loop.run_until_complete(server.service.in_thread(told, heavy=True))
        assert cores == 3
        computing.join(5)
        assert not computing.is_alive()
        with pytest.raises(UsageError, match="told"):
            loop.run_until_complete(server.service.in_thread(_refuses, heavy=True))
        loop.close()


def _refuses():
    raise UsageError("told")


def test_the_page_of_the_api_asks_for_nothing_from_elsewhere(http):
    page = http.get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) >= 3
    assert all(file.startswith("/docs/files/") for file in files)
    assert [http.get(file).status_code for file in files] == [200] * len(files)
    described = http.get("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/answer", "/v1/embeddings", "/v1/rerank"} <= set(described)
