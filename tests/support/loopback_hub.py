"""A Hub on loopback: as much of its API as huggingface_hub needs to describe and download models and data sets.

Faults are injected per request: `hub.fault(fragment, action, times)` runs `action` instead of the honest answer for the
next `times` requests whose "METHOD path" holds `fragment`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "loopback/tiny"

Action = Callable[["Handler"], None]


class Content(Protocol):
    """Bytes of a file, made up as they are read: what it needs of `bytes`, and its sha256."""

    sha256: str

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> bytes | memoryview: ...


Files = dict[str, "bytes | Content"]
_PIECE = 2**20


def safetensors(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(256)) * (size // 256) + b"x" * (size % 256)


def model_files(size: int = 1000) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": safetensors(size),
        "README.md": b"read me",
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "original/model.safetensors": b"another copy",
    }


@dataclass
class Fault:
    fragment: str
    action: Action
    times: int


@dataclass
class LoopbackHub:
    # Of the repository REPO, and of further ones by their names; a data set's name begins with "datasets/".
    files: Files = field(default_factory=lambda: Files(model_files()))
    others: dict[str, Files] = field(default_factory=dict)
    # What the description says of the commit and of each large file's sha256, where it is not the truth.
    commit: object = COMMIT
    sha256: dict[str, object] = field(default_factory=dict)
    # Headers of files that are not the true ones.
    headers: dict[str, str] = field(default_factory=dict)
    # Sizes that the description claims, where they are not the true ones.
    claimed: dict[str, int] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    # Bytes of the bodies that were sent.
    served: int = 0
    # Set at the end, so that stalled answers do not outlive the test.
    closing: threading.Event = field(default_factory=threading.Event)
    # Set by `stall`: a test can wait until the download hangs.
    stalled: threading.Event = field(default_factory=threading.Event)
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, fragment: str, action: Action, times: int = 1_000_000) -> None:
        self._faults.append(Fault(fragment, action, times))

    def take_fault(self, line: str) -> Action | None:
        with self._lock:
            for fault in self._faults:
                if fault.fragment in line and fault.times > 0:
                    fault.times -= 1
                    return fault.action
        return None

    def files_of(self, repo: str) -> Files | None:
        return self.files if repo == REPO else self.others.get(repo)

    def count(self, sent: int) -> None:
        with self._lock:
            self.served += sent

    def info(self, repo: str, files: Files) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": self.claimed.get(name, len(data)), "blobId": _etag(data), **_lfs(name, data)}
            for name, data in files.items()
        ]
        for item in siblings:
            if item["rfilename"] in self.sha256:
                item["lfs"]["sha256"] = self.sha256[item["rfilename"]]
        repo = repo.removeprefix("datasets/")
        return {"id": repo, "modelId": repo, "sha": self.commit, "tags": [], "private": False, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        self.hub.tokens.append(self.headers.get("authorization"))
        if action := self.hub.take_fault(line):
            action(self)
        else:
            self.honest(path)

    def honest(self, path: str) -> None:
        match path.strip("/").split("/"):
            case ["api", "models", owner, name, *rest]:
                self.describe(f"{owner}/{name}", rest)
            case ["api", "datasets", owner, name, *rest]:
                self.describe(f"datasets/{owner}/{name}", rest)
            case ["datasets", owner, name, "resolve", _, *file]:
                self.resolve(f"datasets/{owner}/{name}", "/".join(file))
            case [owner, name, "resolve", _, *file]:
                self.resolve(f"{owner}/{name}", "/".join(file))
            case _:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def describe(self, repo: str, rest: list[str]) -> None:
        json_type = {"Content-Type": "application/json"}
        if (files := self.hub.files_of(repo)) is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest[1:] and rest[1] not in (COMMIT, "main"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": name, "size": len(f), "oid": _etag(f)} for name, f in files.items()]
            self.answer(200, json.dumps(tree).encode(), json_type)
        else:
            self.answer(200, json.dumps(self.hub.info(repo, files)).encode(), json_type)

    def resolve(self, repo: str, name: str) -> None:
        files = self.hub.files_of(repo)
        if files is None or name not in files or f"/resolve/{COMMIT}/" not in self.path:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.file(name, files[name])

    def file(self, name: str, data: bytes | Content, stop_after: int | None = None, *, hold: bool = False) -> None:
        """The range of a file that is asked for; `stop_after` bytes of it, then a cut or silence."""
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        start, _, last = asked.partition("-")
        begin, end = int(start), min(int(last) + 1, len(data)) if last else len(data)
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if lfs := _lfs(name, data):
            headers |= {"X-Linked-Etag": f'"{lfs["lfs"]["sha256"]}"', "X-Linked-Size": str(len(data))}
        headers |= self.hub.headers
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.head(206 if "Range" in self.headers else 200, {"Content-Length": str(end - begin), **headers})
        stop = end if stop_after is None else min(begin + stop_after, end)
        if self.command != "HEAD":
            for position in range(begin, stop, _PIECE):
                self.send(data[position : min(position + _PIECE, stop)])
        if hold:
            self.hang()
        if stop_after is not None:
            self.wfile.flush()
            self.close_connection = True

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.send(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body: bytes | memoryview) -> None:
        self.wfile.write(body)
        self.hub.count(len(body))

    def hang(self) -> None:
        self.hub.stalled.set()
        self.hub.closing.wait(60)
        self.close_connection = True

    def named(self) -> tuple[str, bytes | Content]:
        """The file that the request is for."""
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        depth = 3 if parts[0] == "datasets" else 2
        repo, file = "/".join(parts[:depth]), parts[depth + 2 :]
        files = self.hub.files_of(repo)
        assert files is not None
        return "/".join(file), files["/".join(file)]


def corrupt(handler: Handler) -> None:
    """The right size with a flipped bit."""
    _, data = handler.named()
    flipped = bytes(data[:-1]) + bytes([data[-1:][0] ^ 1])
    handler.answer(200, flipped, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that has what it wanted, or was killed, is no fault of this side.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def status(code: int, **headers: str) -> Action:
    """An error answer; `X_Error_Code="GatedRepo"` becomes the header X-Error-Code."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, b"{}", named)


def cut(after: int) -> Action:
    """The connection ends after so many bytes of the file."""
    return lambda handler: handler.file(*handler.named(), stop_after=after)


def hold(after: int) -> Action:
    """So many bytes of the file, then silence."""
    return lambda handler: handler.file(*handler.named(), stop_after=after, hold=True)


def elsewhere(url: str) -> Action:
    """The file is on another host, as the Hub's large files are."""
    return lambda handler: handler.answer(302, b"", {"Location": url + handler.path})


def stall(handler: Handler) -> None:
    """Headers, then silence."""
    handler.head(200, {"Content-Length": "1000"})
    handler.hang()


def html(handler: Handler) -> None:
    """A captive portal."""
    handler.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})


@contextmanager
def loopback_hub(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    server = Server(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def hub_environment(hub: LoopbackHub, home: Any) -> dict[str, str]:
    """What a child needs to see this Hub only, with a cache of its own."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_of_the_test",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _etag(data: bytes | Content) -> str:
    return hashlib.sha1(data).hexdigest() if isinstance(data, bytes) else data.sha256


def _lfs(name: str, data: bytes | Content) -> dict[str, Any]:
    """What the Hub says of large files only."""
    if not name.endswith((".safetensors", ".parquet")):
        return {}
    sha256 = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.sha256
    return {"lfs": {"size": len(data), "sha256": sha256, "pointerSize": 130}}
