"""The tables of the docs that are made from the code: `python -m tools.docs_tables` writes them again.

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; the rest of a page is written by hand.
tests/project/test_docs.py fails when a page and the code differ.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlx_lm.utils import MODEL_REMAPPING

from bench.result import results
from bench.tables import tables as bench_tables
from quantize.plan.plan import Plan, make_plan
from quantize.plan.policy import DENSE, MOE
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from quantize.source.unpack import Mxfp4Blocks
from server.api.fields import Fields
from server.api.tables import ENDPOINTS
from server.app import create_app
from server.errors import ConfigiError
from server.http.dialect import error_headers
from server.settings.table import setting_rows
from server.settings.types import Settings
from tests.support import architecture_table, client_results
from tests.support.architectures import CHUNK_DEPENDENT, NEEDS_METAL, UNTRIED
from tests.support.checkpoints import write
from tests.support.hub_families import HUB_FAMILIES, hub_checkpoint
from tests.support.packages import TEMPLATE_NAMES, TEMPLATE_PACKAGES, TOKENIZERS
from tests.support.published import EXAMPLES
from tools.lock import lock_of, read_pins

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_MARKED = re.compile(r"(<!-- table:(?P<name>[^ ]+) -->\n).*?(<!-- /table:(?P=name) -->)", re.DOTALL)


@functools.cache
def tables() -> Mapping[str, str]:
    """Every generated table by its name. Seconds of work: every family is planned."""
    made = {
        "settings": _settings(),
        "errors": _errors(),
        "metrics": _metrics(),
        "modules": _modules(),
        "policies": _policies(),
        "families": _families(),
        "tokenizers": _tokenizers(),
        "templates": _templates(),
        "architectures": _architectures(),
        "sdks": _clients("sdk"),
        "agents": _clients("agent"),
        "replays": _table(*client_results.replays()),
    }
    made |= bench_tables(results())
    return made | {f"fields{path}": _fields(fields) for path, fields in ENDPOINTS.items()}


def rewritten(page: str, made: Mapping[str, str]) -> str:
    """`page` with the text between its markers written anew; raises KeyError for a name that no table has."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{made[m['name']]}\n{m[3]}", page)


def names_in(page: str) -> list[str]:
    return [match["name"] for match in _MARKED.finditer(page)]


def error_classes(base: type[ConfigiError] = ConfigiError) -> Iterator[type[ConfigiError]]:
    """`base` and all below it, in the order of the tree."""
    yield base
    for child in base.__subclasses__():
        # Classes of tests are not part of the tree.
        if child.__module__ == ConfigiError.__module__:
            yield from error_classes(child)


def metric_rows() -> list[tuple[str, str, str]]:
    """Name, type and help of everything in /metrics of a fresh server."""
    text = create_app(Settings()).generation.metrics().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return [(name, kinds[name], about) for name, about in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)]


def _settings() -> str:
    sections: dict[str, list[Sequence[str]]] = {}
    for row in setting_rows():
        cells = (_code(row.key), row.type, _code(row.default), row.description)
        sections.setdefault(row.section, []).append(cells)
    return "\n".join(
        f"## {'`[[models]]`' if section == 'models' else f'`[{section}]`'}\n\n"
        + _table(("Key", "Type", "Default", "Meaning"), rows)
        for section, rows in sections.items()
    )


def _errors() -> str:
    rows = [
        (_code(cls.__name__), str(cls.status), _code(cls.type), _code(cls.code or ""), _retry(cls))
        for cls in error_classes()
    ]
    return _table(("Class", "Status", "`type`", "`code`", "Headers"), rows)


def _policies() -> str:
    rows = [(name, f"With experts: {policy.description}") for name, policy in MOE.items() if DENSE[name] != policy]
    rows += [(name, policy.description) for name, policy in DENSE.items()]
    return _table(("Policy", "What it gives"), [(_code(name), about) for name, about in rows])


def _families() -> str:
    """What a plan does to the tensors of each family's synthetic checkpoint."""
    rows = []
    for family in HUB_FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder), *hub_checkpoint(family), holes=True)
            plan = make_plan(open_checkpoint(str(source), HubOptions()), "config-i")
        rows.append((_code(family), EXAMPLES[family], _moves(plan)))
    return _table(("`model_type`", "Such as", "What happens to its tensors, beside new names"), rows)


def _tokenizers() -> str:
    rows = [(name, tokenizer.read_from, str(tokenizer.package)) for name, tokenizer in TOKENIZERS.items()]
    return f"Tokenizers, against {_oracle()}:\n\n" + _table(("Tokenizer", "Read from", "Shipped in"), rows)


def _templates() -> str:
    rows = [
        (f"{package}: {len(TEMPLATE_NAMES[origin])}", ", ".join(TEMPLATE_NAMES[origin]))
        for origin, (package, _) in TEMPLATE_PACKAGES.items()
    ]
    return f"Templates, against {_oracle()}:\n\n" + _table(("Shipped in", "Templates"), rows)


def _oracle() -> str:
    """As it is locked, which is what the tests run with."""
    return f"transformers {read_pins(lock_of(''))['transformers']}"


def _architectures() -> str:
    """What was observed of every architecture (`python -m tools.architectures`)."""
    rows: list[tuple[str, ...]] = []
    for name, seen in architecture_table.read()[1].items():
        note = f"fails in mlx-lm too: {seen.refused}" if seen.refused else ""
        if name in NEEDS_METAL:
            note = "needs Metal: not tried here"
        if name in CHUNK_DEPENDENT:
            note = "mlx-lm's own answer depends on how many tokens of the prompt are read at once"
        if seen.refused:
            rows.append((_code(name), "no", "", "", "", "", note))
        else:
            does = [_yes(seen.batched), _yes(seen.read_together), seen.prefix, _yes(seen.disk)]
            rows.append((_code(name), "yes", *does, note))
    rows += [(_code(name), "", "", "", "", "", f"not tried: {reason}") for name, reason in UNTRIED.items()]
    head = ("`model_type`", "Served", "Batched", "Prompts read together", "Prefix continued", "On disk", "")
    others = ", ".join(f"{_code(other)} ({_code(name)})" for other, name in sorted(MODEL_REMAPPING.items()))
    return f"{_table(head, sorted(rows))}\nThese are served as another: {others}.\n"


def _clients(kind: str) -> str:
    """What was observed of the clients of a kind (`make test-clients`)."""
    head, rows, notes = client_results.table(kind)
    return _table(head, rows) + "".join(f"\n- {note}" for note in notes) + ("\n" if notes else "")


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _moves(plan: Plan) -> str:
    pieces = Counter(id(piece.output) for _, slices in plan.work for piece in slices)
    views = [(tensor, piece.view) for tensor, slices in plan.work for piece in slices]
    kinds = {
        "mxfp4 is multiplied out": any(isinstance(tensor.packing, Mxfp4Blocks) for tensor, _ in views),
        "experts are stacked": any(count > 1 for count in pieces.values()),
        "fused matrices are split": any(len(slices) > 1 and len(tensor.shape) > 1 for tensor, slices in plan.work),
        "transposed": any(view.is_transposed for _, view in views),
        "norms get + 1": any(view.plus for _, view in views),
        "towers and unused layers are dropped": bool(plan.dropped),
    }
    return ", ".join(kind for kind, is_done in kinds.items() if is_done) or "nothing"


def _retry(cls: type[ConfigiError]) -> str:
    """The headers that this class sends by itself."""
    return ", ".join(f"`{name}: {value}`" for name, value in error_headers(cls("")).items())


def _metrics() -> str:
    return _table(("Name", "Type", "Meaning"), [(_code(name), kind, about) for name, kind, about in metric_rows()])


def _modules() -> str:
    """One line for each module: the first of its docstring."""
    folders: dict[str, list[Sequence[str]]] = {}
    files = [path for package in ("server", "quantize") for path in (ROOT / package).rglob("*.py")]
    for path in sorted(files, key=lambda path: (path.parent, path.name)):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if about and path.name != "__init__.py":
            folder = path.parent.relative_to(ROOT).as_posix()
            folders.setdefault(folder, []).append((_code(path.name), about.splitlines()[0]))
    return "\n".join(f"### `{folder}/`\n\n{_table(('Module', 'What it is'), rows)}" for folder, rows in folders.items())


def _fields(fields: Fields) -> str:
    works = {**fields.works, **{name: f"As {first}." for name, first in fields.aliases.items()}}
    for name, inner in fields.inside.items():
        works[name] = f"Holds fields, each as outside of it: {', '.join(sorted(inner))}."
    parts = ["**Works**\n", _table(("Field", "What it does"), _described(works))]
    if fields.accepted:
        parts += ["**Accepted, without effect on the answer**\n", _table(("Field", "Why"), _described(fields.accepted))]
    if fields.refused:
        refused = [
            (_code(name), refusal.why, ", ".join(_code(json.dumps(value)) for value in refusal.unless))
            for name, refusal in fields.refused.items()
        ]
        parts += ["**Refused with a 400**\n", _table(("Field", "Why", "Values accepted nevertheless"), refused)]
    return "\n".join(parts)


def _described(fields: Mapping[str, str]) -> list[Sequence[str]]:
    return [(_code(name), text) for name, text in fields.items()]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def main() -> None:
    made = tables()
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := rewritten(page, made)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"{path.name}: written")


if __name__ == "__main__":
    main()
