"""The same API and answers over vLLM as over the scheduler (with a double of vLLM)."""

import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest

from served import GENERATING, service_of
from served import running as server
from shoulders.engine import vllm as engine
from shoulders.errors import UsageError
from shoulders.serving.app import Server
from shoulders.serving.config import ServerConfig, add_key
from shoulders.serving.models import Models
from shoulders.serving.service import Service
from tiny import TEXTS
from vllm_double import Double

NAMES = ("prefix", "infix", "suffix", "input")
UNFIT = tuple(name for name in GENERATING if name not in ("bare", "twice", *NAMES))


@pytest.fixture(scope="module")
def both(lm, saved):
    """A server over the scheduler, and one over vLLM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_library", Double(lm).imported)
        config = ServerConfig(port=0, allow=(str(saved),))
        models = Models(lm, allow=config.allow)
        for name in NAMES:
            models.add(name, str(saved / name))
        served = [(one.name, scaffold) for one in models for scaffold in one.scaffolds]
        over_vllm = engine.VllmEngine(lm, served).start()
        models.check = over_vllm.check
        with server(service_of(lm, saved, NAMES)) as one, server(Service(lm, over_vllm, models, config)) as other:
            yield one, other


def post(to, path, content):
    with to.http() as http:
        return http.post(path, json=content)


@pytest.mark.parametrize("model", ["bare", *NAMES])
def test_answers_are_the_same(both, model):
    asked = {"model": model, "prompt": TEXTS[0], "max_tokens": 8, "temperature": 0, "logprobs": 2}
    with both[0].client() as client:
        one = client.completions.create(**asked)
    with both[1].client() as client:
        other = client.completions.create(**asked)
        pieces = list(client.completions.create(**asked, stream=True))
    assert one.choices[0].text == other.choices[0].text
    assert one.choices[0].finish_reason == other.choices[0].finish_reason
    assert one.choices[0].logprobs.tokens == other.choices[0].logprobs.tokens
    assert one.choices[0].logprobs.token_logprobs == pytest.approx(other.choices[0].logprobs.token_logprobs, abs=1e-3)
    assert one.usage.completion_tokens == other.usage.completion_tokens
    assert "".join(piece.choices[0].text for piece in pieces) == one.choices[0].text
    question = {"model": model, "question": TEXTS[1], "max_tokens": 6}
    told = [post(some, "/v1/answer", question).json() for some in both]
    assert told[0]["said"] == told[1]["said"]
    assert told[0]["probability"] == pytest.approx(told[1]["probability"], rel=1e-2)


def test_what_vllm_cannot_do_is_an_error_of_the_request(both):
    asked = {"model": "prefix", "prompt": TEXTS[0], "frequency_penalty": 1.0}
    answer = post(both[1], "/v1/completions", asked)
    assert (answer.status_code, "penalties" in answer.json()["error"]["message"]) == (400, True)
    answer = post(both[1], "/v1/answer", {"model": "prefix", "question": "a", "choices": ["b", "c"]})
    assert (answer.status_code, "given answers" in answer.json()["error"]["message"]) == (400, True)


def test_a_scaffold_that_vllm_cannot_serve_is_refused_at_run_time(both, saved):
    asked = {"name": "late", "path": str(saved / "twice")}
    answer = post(both[1], "/v1/scaffolds", asked)
    assert answer.status_code == 400
    assert "not among the 0 that vLLM was started with" in answer.json()["error"]["message"]
    with both[1].http() as http:
        assert http.get("/v1/models/late").status_code == 404
    assert post(both[0], "/v1/scaffolds", asked).status_code == 201


@pytest.mark.parametrize("name", UNFIT)
def test_what_vllm_cannot_serve_is_refused_at_the_start(both, lm, saved, name):
    models = Models(lm)
    models.add(name, str(saved / name))
    served = [(one.name, scaffold) for one in models for scaffold in one.scaffolds]
    with pytest.raises(UsageError, match=f"vLLM cannot serve {name}: .* changes the model's layers"):
        engine.VllmEngine(lm, served)


def test_an_engine_of_another_name_is_refused(refused):
    assert "there is no engine 'vlm': did you mean 'vllm'?" in refused("serve", "--engine", "vlm")


def test_a_taken_port_is_told_before_anything_is_loaded(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused("serve", "no-such-scaffold", "--port", str(port))
    assert f"the server cannot listen at 127.0.0.1:{port} (" in told
    assert "choose another --port" in told


def listens(host, port):
    """Whether another process could listen at the address, as servers do."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_an_address_is_held_before_the_server_listens(host):
    """Nobody else is bound to it, who connects is refused at once, and it is free afterwards."""
    if not listens(host, 0):
        pytest.skip(f"this machine has no {host}")
    with ServerConfig(host=host, port=0).bound() as sockets:
        (port,) = {one.getsockname()[1] for one in sockets}
        assert port > 0
        assert not listens(host, port)
        with pytest.raises(UsageError, match="the server cannot listen at"), ServerConfig(host=host, port=port).bound():
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=5)
    assert listens(host, port)


def test_the_address_is_held_while_models_load_and_free_if_that_fails(refused, monkeypatch):
    held = []

    def load(config, *_, **__):
        held.append(listens("127.0.0.1", config.port))
        raise UsageError("a broken model")

    monkeypatch.setattr("shoulders.cli.serve._models", load)
    with ServerConfig(port=0).bound() as sockets:
        port = sockets[0].getsockname()[1]
    assert "a broken model" in refused("serve", "--port", str(port))
    assert held == [False]
    assert listens("127.0.0.1", port)


def test_a_server_starts_where_one_has_just_stopped(lm, saved):
    """Its last connections may still be ending there; the address that it says is the true one."""
    with ExitStack() as clients:
        with server(service_of(lm, saved)) as first:
            clients.enter_context(first.http()).get("/health")
            port = int(first.url.rpartition(":")[2])
            assert first.url == f"http://127.0.0.1:{port}"
        again = service_of(lm, saved)
        again.config = replace(again.config, port=port)
        with server(again) as second:
            http = clients.enter_context(second.http())
            assert (second.url, http.get("/health").status_code) == (first.url, 200)


def test_an_address_that_another_took_after_all_is_told(lm, saved):
    """Where both may reuse it, the one that listens first has it."""
    with socket.socket() as mine, socket.socket() as other:
        for one in (mine, other):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        mine.bind(("127.0.0.1", 0))
        other.bind(mine.getsockname())
        other.listen()
        service = service_of(lm, saved)
        with pytest.raises(UsageError, match="the server cannot listen at"):
            Server(service).run([mine])
    service.engine._thread.join(5)
    assert not service.engine._thread.is_alive()


@pytest.mark.parametrize("host", ["a..b", "203.0.113.7"])
def test_a_host_that_is_not_this_machine_is_refused_in_one_line(refused, tmp_path, host):
    add_key(tmp_path / "keys.json", "a")
    told = refused("serve", "no-such-scaffold", "--host", host, "--keys", str(tmp_path / "keys.json"))
    assert f"the server cannot listen at {host}:8000 (" in told
