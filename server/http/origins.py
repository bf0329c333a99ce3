"""Which Host and Origin headers a request may carry: what keeps web pages and DNS rebinding away. Pure functions."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.%]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")
_PORT = re.compile(r":\d+$")

# What a container calls the machine that it runs on: Docker, Podman, Lima and OrbStack put these names into it. Below
# `.internal`, which is never delegated, no name can be rebound by whoever owns a public domain.
CONTAINER_NAMES = frozenset(
    {
        "host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal",
        "host.orb.internal",
    }
)  # fmt: skip
# Of the pages of desktop apps (Electron's usual ones, Tauri's on macOS and Linux, VS Code's). A web page has http or
# https, and `null` where it hides that.
_APP_SCHEMES = frozenset({"app", "tauri", "vscode-webview", "vscode-file"})


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
    names = {bound.lower(), *CONTAINER_NAMES, *(name.lower().rstrip(".") for name in listed)}
    if not is_loopback(bound):
        own = socket.gethostname().lower()
        names |= {own, f"{own.removesuffix('.local')}.local"}
    return frozenset(names)


def host_is_allowed(name: str, names: frozenset[str], *, bound_to_all: bool) -> bool:
    """A rebound name is a name: with every interface open, an address in the header is as good as the connection."""
    return is_loopback(name) or name in names or (bound_to_all and _address(name) is not None)


def origin_is_allowed(origin: str, host_header: str, listed: Iterable[str], *, local: bool = False) -> bool:
    """Our own page, a listed origin, or with `local` a page of this machine.

    In a listed one `:*` is any port, and `*` behind a scheme that no web page has is any host. `null` (a sandboxed
    frame, a local file) only when listed, and so by `*`, which is every origin.
    """
    if origin in (f"http://{host_header}", f"https://{host_header}"):
        # A container's programs are no pages: whoever is a page of such a name has a resolver that lies.
        return host_name(host_header) not in CONTAINER_NAMES
    scheme = origin.partition("://")[0]
    alike = {origin, f"{_PORT.sub('', origin)}:*", f"{scheme}://*", "*"}
    return not alike.isdisjoint(listed) or (local and is_local(origin))


def is_local(origin: str) -> bool:
    """A page of loopback, whatever its port, or of an app of this machine: nothing that comes from a public site."""
    scheme, _, host = origin.partition("://")
    name = host_name(host) if scheme in ("http", "https") else None
    return scheme in _APP_SCHEMES or (name is not None and is_loopback(name))


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
