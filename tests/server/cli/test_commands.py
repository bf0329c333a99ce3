"""The `configi` command as a user meets it: a process, what it prints, its exit code."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import __version__
from tests.support.commands import configi
from tests.support.running import ROOT, Running, config, running, running_script, serving_script
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving_script(tmp_path_factory.mktemp("cli-server"), model) as up:
        yield up


def refusal(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    """The one sentence on stderr of a command that fails."""
    done = configi(*words, check=False, cwd=cwd, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("configi: ")
    return line


def test_status_shows_the_state_of_each_model(server: Running) -> None:
    # A proxy of the environment is for the world outside.
    shown = configi("status", "--port", str(server.port), http_proxy="http://127.0.0.1:9")
    assert shown.returncode == 0, shown.stderr
    assert server.url in shown.stdout
    assert "tiny" in shown.stdout
    assert "absent" in shown.stdout
    told = json.loads(configi("status", "--port", str(server.port), "--json").stdout)
    assert told["ready"]["state"] == told["models"][0]["state"] == "absent"


def test_status_says_what_each_model_does_and_not_only_the_default_one(tmp_path: Path, model: Path) -> None:
    path = config(tmp_path, model)
    path.write_text(path.read_text() + '[[models]]\nid = "other"\nacquire = "local"\npath = "missing"\n')
    with running_script(path, (), tmp_path) as server:
        assert server.chat(model="other")[0] == 503
        shown = configi("status", "--port", str(server.port), COLUMNS="200").stdout
        assert "The folder of the model 'other' is missing or has no config.json." in shown


def test_status_without_a_server_says_how_to_start_one() -> None:
    assert "No configi server answers at http://127.0.0.1:1" in refusal("status", "--port", "1")


OTHERS = [
    (404, b'{"error": "not found"}'),
    (404, b'{"error": {"message": "File Not Found"}}'),
    (200, b"[]"),
    (200, b"<html>"),
]


@pytest.mark.parametrize(("status", "body"), OTHERS, ids=range(len(OTHERS)))
def test_status_of_another_program_on_the_port_is_no_configi_server(status: int, body: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            assert "No configi server answers" in refusal("status", "--port", str(other.server_port))
        finally:
            other.shutdown()
            thread.join()


def test_status_with_a_wrong_key_says_so(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, server={"api_key": "right"}) as locked:
        port = str(locked.port)
        assert "API key is missing or wrong" in refusal("status", "--port", port, CONFIGI_SERVER__API_KEY="wrong")
        assert configi("status", "--port", port, CONFIGI_SERVER__API_KEY="right").returncode == 0


@contextlib.contextmanager
def listener(**headers: str) -> Iterator[tuple[int, list[tuple[str, str | None]]]]:
    """Its port, and what came to it: paths, each with the key that came along. It answers as configi would."""
    seen: list[tuple[str, str | None]] = []

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["authorization"]))
            self.send_response(302 if "location" in headers and self.path != "/health" else 200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(b'{"state": "ready", "data": []}')

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            yield other.server_port, seen
        finally:
            other.shutdown()
            thread.join()


def test_the_key_is_not_sent_to_what_is_no_configi_server() -> None:
    with listener() as (port, seen):
        assert "No configi server answers" in refusal("status", "--port", str(port), CONFIGI_SERVER__API_KEY="secret")
    assert seen == [("/health", None)]


def test_the_key_is_not_sent_to_where_a_redirect_leads() -> None:
    with (
        listener(x_configi="1") as (elsewhere, seen),
        listener(x_configi="1", location=f"http://127.0.0.1:{elsewhere}/") as (port, asked),
    ):
        assert "No configi server answers" in refusal("status", "--port", str(port), CONFIGI_SERVER__API_KEY="secret")
    assert (asked, seen) == ([("/health", None), ("/ready", "Bearer secret")], [])


def test_the_key_of_the_environment_is_not_sent_where_a_config_of_the_folder_says(tmp_path: Path) -> None:
    with listener(x_configi="1") as (port, seen):
        (tmp_path / "config.toml").write_text(f"[server]\nport = {port}\n")
        sentence = refusal("status", cwd=tmp_path, CONFIGI_SERVER__API_KEY="secret")
        assert "The key of your settings is not sent to the address that config.toml in this folder names" in sentence
        assert seen == []
        # The folder's own key is meant for the folder's own address, and what was asked for by name is meant.
        (tmp_path / "config.toml").write_text(f'[server]\nport = {port}\napi_key = "own"\n')
        assert configi("status", cwd=tmp_path).returncode == 0
        (tmp_path / "config.toml").write_text(f"[server]\nport = {port}\n")
        for words in (["--config", "config.toml"], ["--host", "127.0.0.1", "--port", str(port)]):
            assert configi("status", *words, cwd=tmp_path, CONFIGI_SERVER__API_KEY="secret").returncode == 0
    assert {key for path, key in seen if path != "/health"} == {"Bearer own", "Bearer secret"}


def test_a_config_of_the_folder_that_names_no_other_address_keeps_the_key(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text((ROOT / "config.toml").read_text())
    environment = {"CONFIGI_SERVER__API_KEY": "secret", "CONFIGI_SERVER__PORT": "1"}
    assert "No configi server answers" in refusal("status", cwd=tmp_path, **environment)


def test_status_sends_the_first_named_key_that_is_none_of_a_hash(tmp_path: Path, model: Path) -> None:
    keys = {"hashed": "sha256:" + "0" * 64, "mine": "sesame"}
    with serving_script(tmp_path, model, **{"server.api_keys": keys}) as locked:
        path = str(tmp_path / "config.toml")
        assert configi("status", "--config", path, "--port", str(locked.port)).returncode == 0


def test_a_demo_with_nothing_but_hashes_of_keys_says_that_it_cannot_ask() -> None:
    keys = json.dumps({"hashed": "sha256:" + "0" * 64})
    assert "needs a key" in refusal("demo", "--port", "0", CONFIGI_SERVER__API_KEYS=keys)


def test_models_are_listed_with_what_is_on_disk_without_a_server(tmp_path: Path, model: Path) -> None:
    path = config(tmp_path, model)
    path.write_text(path.read_text() + '[[models]]\nid = "other"\nacquire = "fetch"\nfetch = "embedded:nope"\n')
    storage = {"CONFIGI_STORAGE__CACHE_DIR": str(tmp_path / "empty")}
    rows = json.loads(configi("models", "--config", str(path), "--json", **storage).stdout)
    assert [(row["id"], row["default"], row["on_disk"]) for row in rows] == [
        ("tiny", True, True),
        ("other", False, False),
    ]
    shown = configi("models", "--config", str(path), **storage).stdout
    assert "tiny (default)" in shown
    assert "gpt-*" in shown


def test_a_model_is_listed_with_the_source_that_it_is_obtained_from(tmp_path: Path) -> None:
    keys = {"fetch": "org/ready", "build_from": "org/source", "path": "/folder"}
    expected = {"fetch-or-build": "org/ready", "fetch": "org/ready", "build": "org/source", "local": "/folder"}
    path = tmp_path / "config.toml"
    table = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    path.write_text("".join(f'[[models]]\nid = "{how}"\nacquire = "{how}"\n{table}' for how in expected))
    rows = json.loads(configi("models", "--config", str(path), "--json").stdout)
    assert {row["id"]: row["source"] for row in rows} == expected


def test_a_folder_is_served_even_when_its_name_matches_an_alias(tmp_path: Path, model: Path) -> None:
    write_tiny_model(tmp_path / "gpt-folder")
    command = ["-P", "-m", "server.cli", "serve", "--config", str(config(tmp_path, model)), "--model", "gpt-folder"]
    with running(command, tmp_path, cwd=tmp_path) as served:
        assert served.get("/ready")[1]["model"] == "gpt-folder"
        assert [entry["id"] for entry in served.get("/v1/models")[1]["data"]] == ["gpt-folder", "tiny"]
        # What a client is set to by default means the model that was asked for, not the one of the configuration.
        for name in ("gpt-4o", "default", None):
            assert served.chat(model=name)[1]["model"] == "gpt-folder"


@pytest.mark.parametrize("name", ["tiny", "gpt-4o"])
def test_the_model_flag_takes_an_id_or_an_alias(tmp_path: Path, model: Path, name: str) -> None:
    path = config(tmp_path, model)
    path.write_text(path.read_text() + f'[[models]]\nid = "other"\nacquire = "local"\npath = "{model}"\n')
    command = ["-m", "server.cli", "serve", "--config", str(path), "--model", name]
    with running(command, tmp_path) as served:
        assert served.get("/ready")[1]["model"] == "tiny"


def test_a_model_that_is_neither_configured_nor_a_folder_is_refused(tmp_path: Path) -> None:
    assert "neither a configured model nor a folder" in refusal("serve", "--model", "/nope")
    assert "no config.json" in refusal("serve", "--model", str(tmp_path))


@pytest.mark.parametrize("key", [None, "", " ", " x", "a\nb"])
def test_off_loopback_the_server_does_not_start_without_a_key_that_can_be_sent(key: str | None) -> None:
    environment = {} if key is None else {"CONFIGI_SERVER__API_KEY": key}
    assert "key" in refusal("serve", "--host", "0.0.0.0", "--port", "0", **environment)


def test_an_address_that_is_not_of_this_machine_is_refused() -> None:
    assert "no such address" in refusal("serve", "--host", "203.0.113.1", "--port", "0", CONFIGI_SERVER__API_KEY="k")


def test_wrong_usage_is_exit_code_2() -> None:
    assert configi("serve", "--prot", "1", check=False).returncode == 2
    assert configi("--version").stdout == f"configi {__version__}\n"


def test_a_demo_that_cannot_start_says_why_and_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = configi("demo", "--port", "0", check=False, CONFIGI_STORAGE__CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "The demo failed: storage.cache_dir is not a folder." in done.stdout
    # The log, not the answer of a request, names the folder.
    assert str(tmp_path) in done.stderr


@pytest.mark.slow
def test_the_demo_answers_whatever_the_settings_and_the_environment_say(tmp_path: Path) -> None:
    environment = {"CONFIGI_SERVER__API_KEY": "k", "http_proxy": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    done = configi("demo", "--port", "0", "--exit-after-reply", check=False, **environment)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "tokens/s" in done.stdout


def test_help_has_its_short_name() -> None:
    for words in ((), ("serve",), ("status",)):
        short, long = (configi(*words, option).stdout for option in ("-h", "--help"))
        assert short == long and "Usage: " in short


def test_ctrl_c_during_the_first_imports_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "server.cli", "serve"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
