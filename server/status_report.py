"""`configi status`: asks the running server and shows its answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table

from server.errors import SetupError
from server.settings import ServerSettings

_TIMEOUT_S = 5


def report(settings: ServerSettings, *, as_json: bool) -> None:
    """Raises SetupError when no server answers."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    address = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    key = settings.api_key.get_secret_value() if settings.api_key else None
    ready = _get(f"{address}/ready", key)
    models = _get(f"{address}/v1/models", key).get("data", [])
    if as_json:
        print(json.dumps({"address": address, "ready": ready, "models": models}, indent=2))
        return
    console = Console()
    console.print(f"configi on {address}", highlight=False)
    table = Table("model", "state", "", box=None, pad_edge=False)
    for model in models:
        text = ready.get("text", "") if model["id"] == ready.get("model") else ""
        table.add_row(model["id"], model.get("state", ""), text)
    console.print(table)


def _get(url: str, key: str | None) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            body: dict[str, Any] = json.load(response)
            return body
    except urllib.error.HTTPError as error:
        # /ready is 503 with the state until a model is resident.
        with error:
            body = json.load(error)
        if error.code == 503:
            return body
        raise SetupError(body.get("error", {}).get("message", f"The server answered {error.code}.")) from None
    except (urllib.error.URLError, OSError, ValueError):
        base = url.rpartition("/")[0].removesuffix("/v1")
        raise SetupError(f"No configi server answers at {base}; start one with `configi serve`.") from None
