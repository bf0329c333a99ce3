"""`configi status`: asks the running server and shows its answer."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any

from rich.table import Table

from quantize.console import console
from quantize.pace import pace_text
from quantize.printable import print_json
from server.cli import loopback
from server.cli.power import low_power_mode
from server.errors import SetupError
from server.settings.types import ServerSettings

_TIMEOUT_S = 5


def report(settings: ServerSettings, *, as_json: bool) -> None:
    """Raises SetupError when no server answers, or what answers does not say that it is one: it gets no key."""
    address = loopback.address(settings.host, settings.port)
    key = settings.own_key
    if not loopback.is_configi(address, _TIMEOUT_S):
        raise _nobody(address)
    ready = _get(address, "/ready", key)
    models = _get(address, "/v1/models", key).get("data", [])
    low_power = low_power_mode()
    if as_json:
        print_json({"address": address, "ready": ready, "models": models, "low_power": low_power})
        return
    out = console()
    out.print(f"configi on {address}")
    table = Table("model", "state", "", box=None, pad_edge=False)
    for model in models:
        text = f"{model.get('text', '')}{pace_text(model.get('bytes_per_second'), model.get('seconds_left'))}"
        table.add_row(model["id"], model.get("state", ""), text)
    out.print(table)
    if low_power:
        out.print("Low Power Mode is on: answers take longer than they need to.")
    for model in models:
        if warning := model.get("warning"):
            out.print(f"{model['id']}: {warning}", markup=False)


def _get(address: str, path: str, key: str | None) -> dict[str, Any]:
    try:
        with loopback.call(address + path, key, timeout=_TIMEOUT_S) as answer:
            status, body = answer.status, json.load(answer)
    except (OSError, ValueError, HTTPException):
        status, body = 0, None
    match status, body:
        # /ready is 503 with the state until a model is resident.
        case ((200 | 503), dict()):
            return body
        case ((401 | 403), {"error": {"message": str(message)}}):
            raise SetupError(message)
    raise _nobody(address)


def _nobody(address: str) -> SetupError:
    return SetupError(f"No configi server answers at {address}; start one with `configi serve`.")
