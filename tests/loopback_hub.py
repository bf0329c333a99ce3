"""A Hub on loopback: as much of its API as huggingface_hub needs to describe and download a model repository.

Faults are injected per request: `hub.fault(fragment, action, times)` runs `action` instead of the honest answer for the
next `times` requests whose "METHOD path" holds `fragment`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "loopback/tiny"

Action = Callable[["Handler"], None]


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
    files: dict[str, bytes] = field(default_factory=model_files)
    # Sizes that the description claims, where they are not the true ones.
    claimed: dict[str, int] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
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

    def info(self) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": self.claimed.get(name, len(data)), "blobId": _etag(data), **_lfs(name, data)}
            for name, data in self.files.items()
        ]
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "private": False, "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in self.files.items()
        ]


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
        if path.startswith((f"/api/models/{REPO}/tree/{COMMIT}", f"/api/models/{REPO}/tree/main")):
            self.answer(200, json.dumps(self.hub.tree()).encode(), {"Content-Type": "application/json"})
        elif path in (
            f"/api/models/{REPO}",
            f"/api/models/{REPO}/revision/main",
            f"/api/models/{REPO}/revision/{COMMIT}",
        ):
            self.answer(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/"):
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif (data := self.hub.files.get(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))) is not None:
            self.file(data)
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def file(self, data: bytes, stop_after: int | None = None) -> None:
        """A file or the rest of it; `stop_after` bytes of it and a cut connection."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = data[start:]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, body, headers, stop_after)

    def answer(self, status: int, body: bytes, headers: dict[str, str], stop_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop_after])
        if stop_after is not None:
            self.wfile.flush()
            self.close_connection = True


def corrupt(name: str) -> Action:
    """The right size with a flipped bit."""

    def action(handler: Handler) -> None:
        data = handler.hub.files[name]
        handler.answer(200, data[:-1] + bytes([data[-1] ^ 1]), {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})

    return action


def status(code: int, **headers: str) -> Action:
    """An error answer; `X_Error_Code="GatedRepo"` becomes the header X-Error-Code."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, b"{}", named)


def cut(name: str, after: int) -> Action:
    """The connection ends after so many bytes of the file."""
    return lambda handler: handler.file(handler.hub.files[name], stop_after=after)


def stall(handler: Handler) -> None:
    """Headers, then silence."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.hub.stalled.set()
    handler.hub.closing.wait(60)
    handler.close_connection = True


def html(handler: Handler) -> None:
    """A captive portal."""
    handler.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})


@contextmanager
def loopback_hub(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
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


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _lfs(name: str, data: bytes) -> dict[str, Any]:
    """What the Hub says of large files only."""
    if not name.endswith(".safetensors"):
        return {}
    return {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}}
