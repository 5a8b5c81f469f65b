"""Push and pull through huggingface_hub against a small hub on this machine that speaks its protocol."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: create, pre-upload, commit, listing, download."""

    files: dict[str, dict[str, bytes]] = {}

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content, status=200):
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_POST(self):
        path, body = urlparse(self.path).path, self._body()
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.files.setdefault(name, {})
            self._json({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._json({"files": modes})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[name][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self._json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self._json({"valid": True} if "validate-yaml" in path else {}, 200)

    def _repository(self, path):
        name = path.removeprefix("/api/models/").split("/revision/")[0].split("/tree/")[0]
        return name, self.files.get(name)

    def do_GET(self):
        path = urlparse(self.path).path
        if path.startswith("/api/models/"):
            name, files = self._repository(path)
            if files is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if "/tree/" in path:
                self._json([{"type": "file", "path": n, "size": len(raw), "oid": "2" * 40} for n, raw in files.items()])
                return
            self._json({"id": name, "sha": "1" * 40, "siblings": [{"rfilename": file} for file in files]})
        else:
            self._download()

    def do_HEAD(self):
        self._download()

    def _download(self):
        name, _, rest = urlparse(self.path).path.lstrip("/").partition("/resolve/")
        raw = self.files.get(name, {}).get(rest.partition("/")[2])
        self.send_response(200 if raw is not None else 404)
        if raw is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", hashlib.sha1(raw).hexdigest())
            self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(raw or b"")))
        self.end_headers()
        if self.command == "GET" and raw:
            self.wfile.write(raw)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_scaffold_is_pushed_to_a_hub_and_pulled_from_it(lm, hub, tmp_path):
    """In processes of their own, because huggingface_hub reads its settings when it is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip

    def run(code: str) -> str:
        start = (
            f'import torch\nfrom shoulders import *\nlm = FrozenLM.load({lm.name!r}, dtype="float32", device="cpu")\n'
        )
        script = start + textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run(
        """
        prompt = SoftPrompt(torch.full((3, lm.width), 0.25)).around(lm)
        prompt.push_to_hub("me/toy-prompt")
        run = train(prompt, lm, [("Hi", "Ho")], steps=1, progress=False)
        run.push_to_hub("me/trained", private=True)
        """
    )
    assert set(Hub.files["me/trained"]) == set(Hub.files["me/toy-prompt"])
    assert json.loads(Hub.files["me/trained"]["config.json"])["recipe"]["training"]["steps"] == 1
    stored = Hub.files["me/toy-prompt"]
    assert {"config.json", "model.safetensors", "README.md"} <= set(stored)
    assert json.loads(stored["config.json"])["backbone"]["fingerprint"] == lm.fingerprint()
    said = run(
        """
        for found in (Scaffold.load("me/toy-prompt", lm), SoftPrompt.from_pretrained("me/toy-prompt", lm=lm)):
            print(found.length, found.prompt.mean().item())
        try:
            Scaffold.load("me/nothing", lm)
        except UsageError as error:
            print(error)
        """
    )
    first, second, missing = said.split("\n", 2)
    assert first == second == "3 0.25"
    assert "the Hugging Face hub has no 'me/nothing' that you may read" in missing
