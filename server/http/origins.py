"""Which Host and Origin headers a request may carry: what keeps web pages and DNS rebinding away. Pure functions."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.%]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")

_PORT = re.compile(r":\d+$")


def host_name(header: str) -> str | None:
    """The name in a Host header, lower case and without port or brackets; None when it is malformed."""
    match = _HOST.fullmatch(header.strip())
    return match["name"].strip("[]").rstrip(".").lower() if match else None


def is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


def allowed_names(bound: str, listed: Iterable[str]) -> frozenset[str]:
    """Names that are answered beside loopback's own: where we listen, and the listed ones.

    This machine's name only where others can connect: a DHCP server may have chosen it.
    """
    names = {bound.lower(), *(name.lower().rstrip(".") for name in listed)}
    if not is_loopback(bound):
        own = socket.gethostname().lower()
        names |= {own, f"{own.removesuffix('.local')}.local"}
    return frozenset(names)


def host_is_allowed(name: str, names: frozenset[str], *, bound_to_all: bool) -> bool:
    """A rebound name is a name: with every interface open, an address in the header is as good as the connection."""
    return is_loopback(name) or name in names or (bound_to_all and _address(name) is not None)


def origin_is_allowed(origin: str, host_header: str, listed: Iterable[str]) -> bool:
    """Our own page, or a listed origin, `:*` for any port. `null` (a sandboxed frame, a local file) only when listed,
    and so by `*`, which is every origin."""
    if origin in (f"http://{host_header}", f"https://{host_header}"):
        return True
    any_port = f"{_PORT.sub('', origin)}:*"
    return any(entry in (origin, any_port, "*") for entry in listed)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
