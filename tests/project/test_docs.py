"""The docs against the code: generated tables, names that pages mention, examples that run, a site that builds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from server.api.tables import ENDPOINTS
from server.engine_client import protocol
from server.models.status import STATES
from server.settings.table import setting_rows
from tests.support.fim_model import write_fim_model
from tests.support.running import ROOT, Running, serving_script
from tools.docs_tables import DOCS, error_classes, metric_rows, names_in, rewritten, tables

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
SECTIONS = {row.section for row in setting_rows()}


def code_blocks(language: str) -> list[str]:
    pages = [(ROOT / "README.md").read_text(encoding="utf-8"), *PAGES.values()]
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("name", PAGES)
def test_generated_tables_are_what_the_code_says(name: str) -> None:
    assert rewritten(PAGES[name], tables()) == PAGES[name], "run `make docs-tables`"


def test_every_generated_table_stands_on_one_page() -> None:
    assert sorted(name for page in PAGES.values() for name in names_in(page)) == sorted(tables())


def test_every_setting_is_in_the_docs() -> None:
    page = PAGES["settings.md"]
    assert [row.key for row in setting_rows() if f"\n| `{row.key}` | {row.type} |" not in page] == []
    assert [section for section in SECTIONS if not re.search(rf"^## `\[+{section}\]+`$", page, re.MULTILINE)] == []


def test_every_error_is_in_the_table_and_explained_below_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["errors.md"], re.MULTILINE)
    classes = [cls.__name__ for cls in error_classes()]
    assert rows == classes + classes


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_request_field_is_in_the_docs(path: str) -> None:
    _, _, rest = PAGES["api.md"].partition(f"## Fields of {path}\n")
    section = rest.partition("\n## ")[0]
    fields = ENDPOINTS[path]
    names = [*fields.works, *fields.aliases, *fields.inside, *fields.accepted, *fields.refused]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)) == sorted(names)


def test_every_message_between_the_processes_is_explained() -> None:
    names = [struct.__name__ for struct in (*get_args(protocol.EngineCommand), *get_args(protocol.EngineEvent))]
    assert names
    assert [name for name in names if f"\n| `{name}` | " not in PAGES["architecture.md"]] == []


def test_every_state_of_a_model_is_explained() -> None:
    assert [state for state in STATES if f"\n| `{state}` | " not in PAGES["operations.md"]] == []


def test_every_metric_is_in_the_docs() -> None:
    names = [name for name, _, _ in metric_rows()]
    assert "configi_requests_total" in names
    assert [name for name in names if f"`{name}`" not in PAGES["operations.md"]] == []


def test_every_setting_that_a_page_mentions_exists() -> None:
    known = {f"{row.section}.{row.key}" for row in setting_rows()}
    pattern = re.compile(rf"`((?:{'|'.join(SECTIONS)})\.(?!py`)\w+)`")
    mentioned = {name for page in PAGES.values() for name in pattern.findall(page)}
    assert "server.api_key" in mentioned
    assert mentioned - known == set()


def test_every_file_that_a_page_mentions_exists() -> None:
    folders = (ROOT, ROOT / "server", ROOT / "quantize")
    mentioned = {name for page in PAGES.values() for name in re.findall(r"`([\w./]+\.py)`", page)}
    # The tables of modules name files below the heading of their folder.
    short = {path.name for package in ("server", "quantize") for path in (ROOT / package).rglob("*.py")}
    missing = {name for name in mentioned if not any((folder / name).is_file() for folder in folders)}
    assert missing - short == set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("docs")
    with serving_script(folder, write_fim_model(folder / "model")) as running:
        yield running


def test_the_curl_examples_are_answered(server: Running) -> None:
    examples = [words for block in code_blocks("sh") if (words := shlex.split(block))[0] == "curl"]
    assert examples
    for words in examples:
        [url] = [word for word in words if word.startswith("http")]
        body = json.loads(words[words.index("-d") + 1])
        assert words[words.index("-H") + 1] == "Content-Type: application/json"
        status, _ = server.post(url.removeprefix("http://127.0.0.1:8080"), body)
        assert status == 200


# One interpreter for all of them: most of what each costs is the import of a client.
RUN_EACH = """
import contextlib, io, json, sys
for number, script in enumerate(json.load(sys.stdin)):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(script, f"example {number}", "exec"), {"__name__": "__main__"})
    print(json.dumps(said.getvalue()))
"""


def test_the_python_examples_run(server: Running) -> None:
    examples = [block.replace("http://127.0.0.1:8080", server.url) for block in code_blocks("python")]
    assert examples
    scripts = json.dumps([example.replace('"default"', '"tiny"') for example in examples])
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH], input=scripts, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(examples)
    assert all(said)


@pytest.mark.slow
def test_every_test_that_the_security_page_names_exists() -> None:
    page = PAGES["security.md"]
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE)}
    assert named
    assert sorted(named - defined) == []


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site's tools are not installed; `make docs` installs them")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES)
    for page in pages:
        assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"' >]+""", page) == []
        # The theme would fetch a script for diagrams.
        assert "mermaid" not in page


def test_the_docs_image_is_made_of_files_that_exist_and_of_what_is_locked() -> None:
    recipe = (ROOT / "Dockerfile.docs").read_text(encoding="utf-8")
    sources = re.findall(r"^COPY (?!--from)(\S+) ", recipe, re.MULTILINE)
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert re.findall(r"--require-hashes --requirement (\S+)$", recipe, re.MULTILINE) == ["requirements-docs.lock"]
