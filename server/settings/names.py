"""Host names and origins as settings: what no browser would ever send is a mistake worth a sentence. Pure functions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_HOST = r"(?:\[[0-9a-f:.]+\]|[^\s/:@\[\]?#*A-Z]+)"
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_HOST}(?::(?P<port>\d{{1,5}}|\*))?")
# Every extension of a browser, say; every web page is `*`.
_ANY_HOST = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://\*")
_HOST_NAME = re.compile(r"[^\s/:@\[\]?#*]+")
# A browser leaves these out.
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def check_origins(origins: Iterable[str]) -> None:
    """Raises ValueError for one that can never match."""
    for origin in origins:
        match = _ORIGIN.fullmatch(origin)
        if origin not in ("*", "null") and match is None and not _ANY_HOST.fullmatch(origin):
            raise ValueError(
                f"'{origin}' can never match: an origin is SCHEME://HOST, :PORT or :* after it, lower case and "
                "without a path; or SCHEME://* where SCHEME is not http or https; or '*' or 'null'"
            )
        if match and (match["scheme"], match["port"]) in _DEFAULT_PORTS:
            raise ValueError(f"'{origin}' can never match: browsers leave out the default port")


def can_be_listed(origin: str) -> bool:
    """Whether it is one that `check_origins` lets pass."""
    return origin == "null" or _ORIGIN.fullmatch(origin) is not None


def is_host(name: str) -> bool:
    return _HOST_NAME.fullmatch(name) is not None or _is_address(name)


def check_hosts(hosts: Iterable[str]) -> None:
    """Raises ValueError for one that can never match."""
    for host in hosts:
        if not is_host(host):
            raise ValueError(
                f"'{host}' can never match: a host is a name or an address, without scheme, port or brackets"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
