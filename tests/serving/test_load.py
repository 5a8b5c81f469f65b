"""The load generator against an endpoint whose faults are known."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shoulders.errors import SourceNotFound, UsageError
from shoulders.serving.load import Endpoint, Load, Mix, Outcome, Request, random_prompts, run


class Handler(BaseHTTPRequestHandler):
    """Answers `max_tokens` pieces of text; what the model's name asks for goes wrong."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        models = [{"id": "good"}, {"id": "refuses"}, {"id": "encoder", "endpoints": ["embeddings"]}]
        self.reply(200, {"data": models})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen = self.server.seen
        with seen.lock:
            seen.asked.append((self.path, dict(self.headers), asked))
            seen.now += 1
            seen.most = max(seen.most, seen.now)
        self.here = True
        try:
            self.answer(asked, seen)
        except (BrokenPipeError, ConnectionResetError):
            seen.hung_up += 1
        finally:
            self.leave(seen)

    def leave(self, seen):
        """Count a request as answered; before its end is sent, for then the client may ask again at once."""
        with seen.lock:
            seen.now -= self.here
            self.here = False

    def answer(self, asked, seen):
        model = asked["model"]
        if model == "refuses":
            return self.reply(400, {"error": {"message": "prompt is too long"}})
        if model == "full" and seen.tries[asked["prompt"]] < 2:
            seen.tries[asked["prompt"]] += 1
            return self.reply(429, {"error": {"message": "queue is full"}}, {"Retry-After": "0.01"})
        if not asked.get("stream"):
            count = asked["max_tokens"]
            text = "".join(f" {number}" for number in range(count))
            return self.reply(200, {"choices": [{"text": text}], "usage": {"completion_tokens": count}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        chat = "messages" in asked
        for number in range(asked["max_tokens"]):
            piece = {"delta": {"content": f" {number}"}} if chat else {"text": f" {number}"}
            self.event({"choices": [piece], "usage": None})
            if model == "breaks" and number == 1:
                self.event({"error": {"message": "the scaffold gave NaN"}})
                return self.event("[DONE]")
            if model == "ends" and number == 1:
                return None
            time.sleep(0.005)
        self.leave(seen)
        self.event({"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}})
        return self.event("[DONE]")

    def event(self, content):
        data = content if isinstance(content, str) else json.dumps(content)
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def reply(self, status, content, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


class Seen:
    """What the endpoint was asked."""

    def __init__(self):
        self.lock, self.asked, self.tries = threading.Lock(), [], Counter()
        self.now = self.most = self.hung_up = 0


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.seen = True, Seen()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def endpoint():
    with serving() as (url, seen):
        yield Endpoint(url, "a-key"), seen


def test_every_request_is_answered_by_so_many_clients(endpoint):
    place, seen = endpoint
    load = run(place, Mix(["good", "good-too"], ["a", "b", "c"], 12, 4, fields={"min_tokens": 4}).requests(), clients=3)
    assert [one.text for one in load.outcomes] == [" 0 1 2 3"] * 12
    assert all(one.tokens == 4 and not one.error for one in load.outcomes)
    assert seen.most == 3
    assert Counter((asked["model"], asked["prompt"]) for _, _, asked in seen.asked) == {
        (model, prompt): 2 for model in ("good", "good-too") for prompt in "abc"
    }
    path, headers, asked = seen.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/completions", "Bearer a-key")
    assert asked["min_tokens"] == 4
    assert asked["stream_options"] == {"include_usage": True}


def test_every_model_gets_every_prompt():
    mix = Mix(list("abcdef"), list("uvwx"), 48, 1)
    pairs = Counter((one.model, one.prompt) for one in mix.requests())
    assert len(pairs) == 24
    assert set(pairs.values()) == {2}


def test_times_are_those_of_the_answers(endpoint):
    place, _ = endpoint
    load = run(place, [Request("good", "a", 20)], clients=1)
    (one,) = load.outcomes
    assert 0 < one.first < one.seconds <= load.seconds
    assert one.seconds >= 0.1  # 20 pieces, 5 ms each
    assert one.first < 0.08


def test_an_answer_as_a_whole(endpoint):
    where, seen = endpoint
    asked = [Request(model, "why", 3, streamed=False) for model in ("good", "refuses", "full")]
    outcomes = {one.request.model: one for one in run(where, asked, clients=3).outcomes}
    assert (outcomes["good"].text, outcomes["good"].tokens, outcomes["good"].first) == (" 0 1 2", 3, None)
    assert outcomes["refuses"].error == "400 prompt is too long"
    assert (outcomes["full"].refused, outcomes["full"].error) == (2, "")
    assert not any("stream" in asked for _, _, asked in seen.asked)


def test_requests_at_a_rate_come_however_many_run(endpoint):
    place, seen = endpoint
    load = run(place, [Request("good", "a", 8)] * 60, rate=200, seed=1)
    begun = sorted(one.begun for one in load.outcomes)
    assert seen.most > 3
    assert 0.15 < begun[-1] - begun[0] < 1.5  # 60 gaps of 5 ms on average
    assert not load.summary()["failed"]


def test_a_full_server_is_asked_again(endpoint):
    place, _ = endpoint
    load = run(place, [Request("full", prompt, 2) for prompt in "ab"], clients=2)
    assert [(one.text, one.refused, one.error) for one in load.outcomes] == [(" 0 1", 2, "")] * 2
    assert load.summary()["refused"] == 4
    once = Endpoint(place.url, attempts=1)
    (one,) = run(once, [Request("full", "c", 2)]).outcomes
    assert one.error == "429 queue is full"


def test_a_client_that_leaves_hangs_up_half_way(endpoint):
    place, seen = endpoint
    load = run(place, Mix(["good"], ["a"], 10, 40, leaving=0.4, seed=3).requests(), clients=5)
    left = [one for one in load.outcomes if one.request.leaves]
    summary = load.summary()
    assert 0 < len(left) == summary["left"] < 10
    assert summary["answered"] == 10 - len(left)
    assert not summary["failed"]
    assert {one.tokens for one in left} == {20}
    assert all(one.text == "".join(f" {number}" for number in range(20)) for one in left)
    until = time.monotonic() + 5
    while seen.hung_up < len(left) and time.monotonic() < until:
        time.sleep(0.01)
    assert seen.hung_up == len(left)


@pytest.mark.parametrize(
    ("model", "error"),
    [("refuses", "400 prompt is too long"), ("breaks", "the scaffold gave NaN"), ("ends", "the answer broke off")],
)
def test_what_goes_wrong_is_counted_and_named(endpoint, model, error):
    place, _ = endpoint
    load = run(place, [Request(model, "a", 4), Request("good", "a", 4)], clients=2)
    summary = load.summary()
    assert (summary["failed"], summary["answered"], summary["errors"]) == (1, 1, {error: 1})


def test_an_endpoint_that_is_gone_is_an_error_of_the_request():
    with serving() as (url, _):
        pass
    (one,) = run(Endpoint(url), [Request("good", "a", 1)]).outcomes
    assert one.error.startswith("ConnectError")
    with pytest.raises(SourceNotFound, match="nothing answers at"):
        Endpoint(url).models()


def test_chat_completions(endpoint):
    place, seen = endpoint
    (one,) = run(Endpoint(place.url + "/v1/", chat=True), [Request("good", "hello", 2)]).outcomes
    assert one.text == " 0 1"
    path, headers, asked = seen.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert asked["messages"] == [{"role": "user", "content": "hello"}]


def test_the_summary_of_known_times():
    asked = Request("a", "b", 11)
    outcomes = [Outcome(asked, 0, 0.1 * number, 0.1 * number + 1, "", 11) for number in range(1, 11)]
    outcomes.append(Outcome(Request("a", "b", 11, leaves=True), 0, 5.0, 5.5, "", 5))
    outcomes.append(Outcome(asked, 0, None, 9.0, error="gone"))
    summary = Load(outcomes, 10.0).summary()
    assert (summary["requests"], summary["answered"], summary["left"], summary["failed"]) == (12, 10, 1, 1)
    assert summary["tokens_per_second"] == pytest.approx(11.5)
    assert summary["requests_per_second"] == pytest.approx(1.1)
    assert summary["first_token_p50"] == pytest.approx(0.6)
    assert summary["latency_p50"] == pytest.approx(1.55)
    assert summary["latency_p95"] == pytest.approx(1.955)
    assert summary["token_p50"] == pytest.approx(0.1)
    assert Load([], 1.0).summary()["first_token_p95"] is None


def test_random_prompts_are_drawn_by_the_seed():
    some = random_prompts(5, 20, seed=1)
    assert some == random_prompts(5, 20, seed=1)
    assert some != random_prompts(5, 20, seed=2)
    assert len(set(some)) == 5
    assert {len(prompt.split()) for prompt in some} == {20}


def test_impossible_settings_are_refused():
    for wrong in ({"count": 0}, {"max_tokens": 0}, {"leaving": 1.5}, {"models": []}):
        with pytest.raises(UsageError):
            Mix(**{"models": ["a"], "prompts": ["b"], "count": 1, "max_tokens": 1, **wrong})


def test_the_command_prints_what_was_measured(shoulders, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\n  two \n")
    options = ["--model", "good", "--requests", 6, "--clients", 2, "--max-tokens", 3, "--exact"]
    with serving() as (url, seen):
        code, out, _ = shoulders(
            "bench-serve",
            url,
            *options,
            "--prompts",
            tmp_path / "prompts.txt",
            "--json",
            "--out",
            tmp_path / "out.json",
        )
        shown = json.loads(out.splitlines()[0])
        assert code == 0
        assert (shown["answered"], shown["clients"], shown["models"]) == (6, 2, ["good"])
        assert json.loads((tmp_path / "out.json").read_text()) == shown
        assert {asked["prompt"] for _, _, asked in seen.asked} == {"one", "two"}
        assert {asked["min_tokens"] for _, _, asked in seen.asked} == {3}
        code, out, _ = shoulders("bench-serve", url, *options)
    assert code == 0
    assert out.startswith("6 of 6 answered in ")
    assert "time to first token" in out


def test_the_command_refuses_in_one_line(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with serving() as (url, _):
        assert "there is no model 'goof': did you mean 'good'?" in refused("bench-serve", url, "--model", "goof")
        assert "no model 'encoder'" in refused("bench-serve", url, "--model", "encoder")
        assert "has no prompt" in refused("bench-serve", url, "--prompts", tmp_path / "empty.txt")
        assert "cannot read" in refused("bench-serve", url, "--prompts", tmp_path / "missing.txt")
        assert "--leaving is a share" in refused("bench-serve", url, "--leaving", "2")
        assert "at least 1 client" in refused("bench-serve", url, "--clients", "0")
    assert "nothing answers at" in refused("bench-serve", url)
    assert "nothing answers at" in refused("bench-serve", "no address")


def test_a_load_needs_no_torch():
    code = "import sys, shoulders.serving.load, shoulders.cli.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
