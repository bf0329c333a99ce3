"""`configi models`: the catalog as this machine sees it; no server is asked."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from quantize.console import console
from quantize.printable import print_json
from server.models.acquire import Acquirer
from server.models.catalog import Catalog
from server.settings.types import ModelSettings, Settings


def report(settings: Settings, *, as_json: bool) -> None:
    catalog, acquirer = Catalog(settings), Acquirer(settings.storage)
    rows: list[dict[str, Any]] = [
        {
            "id": entry.id,
            "default": entry == catalog.default,
            "aliases": entry.aliases,
            "acquire": entry.acquire,
            "source": _source(entry),
            "on_disk": acquirer.locate(entry) is not None,
        }
        for entry in catalog.entries
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("model", "source", "on disk", "aliases", box=None, pad_edge=False)
    for row in rows:
        name = f"{row['id']} (default)" if row["default"] else str(row["id"])
        table.add_row(name, str(row["source"]), "yes" if row["on_disk"] else "no", " ".join(row["aliases"]))
    console().print(table)


def _source(entry: ModelSettings) -> str:
    """Where `acquire` takes it from; a table may hold keys that its `acquire` has no use for."""
    sources = {
        "local": entry.path,
        "fetch": entry.fetch,
        "build": entry.build_from,
        "fetch-or-build": entry.fetch or entry.build_from,
    }
    return str(sources[entry.acquire])
