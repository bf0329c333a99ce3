"""Host names and origins as settings: what no browser would ever send is a mistake worth a sentence. Pure functions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_HOST = r"(?:\[[0-9a-f:.]+\]|[^\s/:@\[\]?#*A-Z]+)"
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_HOST}(?::(?P<port>\d{{1,5}}|\*))?")
_HOST_NAME = re.compile(r"[^\s/:@\[\]?#*]+")
# A browser leaves these out.
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def check_origins(origins: Iterable[str]) -> None:
    """Raises ValueError for one that can never match."""
    for origin in origins:
        match = _ORIGIN.fullmatch(origin)
        if origin not in ("*", "null") and match is None:
            raise ValueError(
                f"'{origin}' can never match: an origin is SCHEME://HOST, :PORT or :* after it, lower case and "
                "without a path; or '*' or 'null'"
            )
        if match and (match["scheme"], match["port"]) in _DEFAULT_PORTS:
            raise ValueError(f"'{origin}' can never match: browsers leave out the default port")


def check_hosts(hosts: Iterable[str]) -> None:
    """Raises ValueError for one that can never match."""
    for host in hosts:
        if not _HOST_NAME.fullmatch(host) and not _is_address(host):
            raise ValueError(
                f"'{host}' can never match: a host is a name or an address, without scheme, port or brackets"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
