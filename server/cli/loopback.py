"""How the `configi` command reaches its own server: the address, and requests that bypass the user's proxies."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse

# What `GET /health` of this server, which needs no key, has among its headers.
_IDENTITY = "x-configi"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """This server never redirects, and the key would go along."""

    def redirect_request(self, *_: object) -> None:
        return None


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def address(host: str, port: int) -> str:
    """The base URL of a server that listens on `host`; loopback's when it listens on every interface."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def call(url: str, key: str | None, body: bytes | None = None, timeout: float | None = None) -> HTTPResponse:
    """The answer, whatever its status. Raises OSError when nothing answers, HTTPException when it is not HTTP."""
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    try:
        answer = _direct.open(urllib.request.Request(url, body, headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        answer = error
    return answer  # type: ignore[no-any-return]


def is_configi(address: str, timeout: float) -> bool:
    """Whether what answers at `address` says that it is this server: asked without a key, before one is sent."""
    try:
        with call(f"{address}/health", None, timeout=timeout) as answer:
            return _IDENTITY in answer.headers
    except (OSError, HTTPException):
        return False
