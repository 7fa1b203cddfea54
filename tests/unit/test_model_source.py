"""From a URI to a model on this machine; the hub is a local server that speaks its API."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.model_source import ModelNotFound, resolve

SOURCES = Path(__file__).parents[2] / "engine_image"
GGUF = b"GGUF" + bytes(60)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The part of the hub's API that a download uses: revision, tree, and files with their etags."""

    repositories: dict[str, dict[str, bytes]]
    token: str = "right"
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    broken: bool = False

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        path, _, _ = path.partition("?")
        self.requests.append(path)
        if self.broken:
            return 500, {}, b"{}"
        if authorization not in ("", f"Bearer {self.token}"):
            return 401, {}, json.dumps({"error": "Invalid user token"}).encode()
        known = next((name for name in self.repositories if f"/{name}/" in path), None)
        if known is None or (known in self.private and not authorization):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if known in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        files = self.repositories[known]
        kind, _, rest = path.removeprefix("/api/models").removeprefix(f"/{known}/").partition("/")
        revision, _, file = rest.partition("/")
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return _json({"id": known, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        if kind == "tree":
            return _json([{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(files[file])}"'}, files[file]


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    model = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same weights",
        "onnx/config.json": b"{}",
        "q4.gguf": GGUF,
        "README.md": b"#",
    }
    state = Hub({"org/model": model, "org/secret": model, "org/gated": model, "org/only-gguf": {"q4.gguf": GGUF}})
    state.private.add("org/secret")
    state.gated.add("org/gated")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = state.answer(self.path, self.headers.get("authorization") or "")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(endpoint: str, uri: str, cache: Path, *, revision: str = "main", token: str = "") -> tuple[int, dict[str, str], str]:
    """The launcher's download process: exit code, what it printed, its standard error."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "HF_ENDPOINT": endpoint, "HOME": str(cache)}
    if token:
        environment["HF_TOKEN"] = token
    command = [
        sys.executable,
        "-m",
        "enginehouse_engine.launcher.model_fetch",
        uri,
        "--revision",
        revision,
        "--cache-dir",
        str(cache),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_folder_comes_without_what_the_engine_does_not_read(hub: tuple[Hub, str], tmp_path: Path) -> None:
    code, said, errors = fetch(hub[1], "hf://org/model", tmp_path)
    assert code == 0, errors
    folder = Path(said["path"])
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_one_file_comes_alone_and_only_once(hub: tuple[Hub, str], tmp_path: Path) -> None:
    state, endpoint = hub
    for _ in range(2):
        code, said, errors = fetch(endpoint, "hf://org/model/q4.gguf", tmp_path)
        assert code == 0, errors
        assert Path(said["path"]).read_bytes() == GGUF
    assert not [path for path in state.requests if "safetensors" in path]


def test_a_model_in_the_cache_is_used_when_the_hub_is_broken(hub: tuple[Hub, str], tmp_path: Path) -> None:
    state, endpoint = hub
    _, first, _ = fetch(endpoint, "hf://org/model", tmp_path)
    state.broken = True
    assert fetch(endpoint, "hf://org/model", tmp_path)[:2] == (0, first)


def test_a_private_model_opens_with_the_token(hub: tuple[Hub, str], tmp_path: Path) -> None:
    assert fetch(hub[1], "hf://org/secret/q4.gguf", tmp_path, token="right")[0] == 0


@pytest.mark.parametrize(
    ("uri", "revision", "token", "words"),
    [
        ("hf://org/nothing", "main", "", "the hub has no repository org/nothing, or it is private and HF_TOKEN does not open it"),
        ("hf://org/secret", "main", "", "the hub has no repository org/secret, or it is private"),
        ("hf://org/gated", "main", "right", "access must be asked for at the hub"),
        ("hf://org/model", "v9", "", "org/model has no branch, tag or commit 'v9'"),
        ("hf://org/model/q8.gguf", "main", "", "org/model has no file 'q8.gguf' at revision 'main'"),
        ("hf://org/model/README.md", "main", "", "is no GGUF file"),
        ("hf://org/only-gguf", "main", "", "name a GGUF file, as in hf://ORG/NAME/FILE.gguf"),
        ("hf://org", "main", "", "wanted hf://ORG/NAME"),
        ("hf://-/..", "main", "", "is no name of a repository"),
        ("hf://org/model", "main", "wrong", "HF_TOKEN"),
    ],
)
def test_what_is_not_there_is_said_and_cannot_be_helped_by_trying_again(
    hub: tuple[Hub, str], tmp_path: Path, uri: str, revision: str, token: str, words: str
) -> None:
    code, said, errors = fetch(hub[1], uri, tmp_path, revision=revision, token=token)
    assert (code, said.get("class")) == (78, "ModelNotFound"), errors
    assert words in said["message"]
    assert uri in said["message"]


def test_a_hub_that_does_not_answer_may_be_tried_again(tmp_path: Path) -> None:
    code, said, errors = fetch("http://127.0.0.1:9", "hf://org/model", tmp_path)
    assert code == 1, errors
    assert said["class"] == "Exception"
    assert "hf://org/model: the hub cannot be reached" in said["message"]


def test_paths_and_file_uris_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a b.gguf"
    file.write_bytes(GGUF)
    assert resolve(str(file)) == file
    assert resolve(f"file://{tmp_path}/a%20b.gguf") == file
    (tmp_path / "config.json").write_text("{}")
    assert resolve(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://models/x", "wanted file:///PATH with three slashes"),
        ("s3://bucket/x", "unknown scheme 's3'; wanted a path"),
        ("{folder}/missing/deep.gguf", "does not exist on this machine; {folder} exists and holds weights.bin"),
        ("{folder}", "has no config.json (found: weights.bin)"),
        ("{folder}/weights.bin", "is no GGUF file (it starts with b'PK"),
        ("{folder}/" + "x" * 300, "is no path: File name too long"),
    ],
)
def test_a_wrong_path_says_what_was_found(tmp_path: Path, uri: str, words: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelNotFound) as error:
        resolve(uri.format(folder=tmp_path))
    assert words.format(folder=tmp_path) in str(error.value)


def test_a_model_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        # What the kernel says to a user who may not look into a folder; tests may run as root, who may.
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ModelNotFound, match=r"m\.gguf may not be read by user"):
        resolve(str(tmp_path / "m.gguf"))
