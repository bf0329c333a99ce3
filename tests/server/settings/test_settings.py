from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from server.errors import SetupError
from server.settings.loading import load_settings
from server.settings.table import config_toml, setting_rows
from server.settings.types import LifecycleSettings, Settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.upper().startswith("CONFIGI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def write(text: str, path: Path = Path("config.toml")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def sentence(config: Path | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(SetupError) as caught:
        load_settings(config, overrides or {})
    return str(caught.value)


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings(None, {}) == Settings()


def test_flags_come_before_the_environment_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[server]\nhost = "file"\nport = 1\nmax_body = "2kB"\n')
    monkeypatch.setenv("CONFIGI_SERVER__HOST", "environment")
    monkeypatch.setenv("CONFIGI_SERVER__PORT", "2")
    monkeypatch.setenv("CONFIGI_SERVER__ALLOWED_HOSTS", '["a.example"]')
    server = load_settings(None, {"server": {"host": "flag"}}).server
    assert (server.host, server.port, server.max_body, server.header_timeout_s) == ("flag", 2, 2000, 10)
    assert server.allowed_hosts == ["a.example"]


def test_the_file_is_the_given_one_or_the_named_one_or_the_one_here_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    def port() -> int:
        return load_settings(None, {}).server.port

    write("[server]\nport = 4", Path(platformdirs.user_config_dir("configi")) / "config.toml")
    assert port() == 4
    write("[server]\nport = 3")
    assert port() == 3
    monkeypatch.setenv("CONFIGI_CONFIG", str(write("[server]\nport = 2", tmp_path / "named.toml")))
    assert port() == 2
    assert load_settings(write("[server]\nport = 1", tmp_path / "given.toml"), {}).server.port == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 1", "config.toml: unknown key 'prot' in [server]; did you mean 'port'?"),
        ("[servr]\nport = 1", "config.toml: unknown section or key 'servr'; did you mean 'server'?"),
        ("port = 1", "config.toml: unknown section or key 'port'; it belongs in [server]."),
        ("[engine]\nport = 1", "config.toml: unknown key 'port' in [engine]; it belongs in [server]."),
        ("[log]\nxyzzy = 1", "config.toml: unknown key 'xyzzy' in [log]."),
        (
            '[[models]]\nid = "a"\nfecth = "b"',
            "config.toml: unknown key 'fecth' in [[models]]; did you mean 'fetch'?",
        ),
        (
            "[server]\nport = 70000",
            "config.toml: server.port: input should be less than or equal to 65535, got 70000.",
        ),
        ('[server]\nport = "8080"', "config.toml: server.port: input should be a valid integer, got '8080'."),
        ("[server]\nport = true", "config.toml: server.port: input should be a valid integer, got True."),
        ("[server]\nsse_ping_s = inf", "config.toml: server.sse_ping_s: input should be a finite number, got inf."),
        (
            "[server]\nmax_body_bytes = 1",
            "config.toml: unknown key 'max_body_bytes' in [server]; did you mean 'max_body'?",
        ),
        (
            "[lifecycle]\nmemory_limit_bytes = 1",
            "config.toml: unknown key 'memory_limit_bytes' in [lifecycle]; did you mean 'memory_limit'?",
        ),
        ("server = 5", "config.toml: server: input should be an object."),
        (
            '[[models]]\nid = "a"\nacquire = "fetch"',
            'config.toml: models[0]: model "a" has acquire = "fetch" and needs fetch.',
        ),
        ("models = []", "models: at least one [[models]] table is needed."),
        (
            '[[models]]\nid = "a"\nfetch = "o/r"\n[[models]]\nid = "a"\nfetch = "o/r"',
            "models: the id 'a' is given twice.",
        ),
        (
            '[lifecycle]\ndefault_model = "qwem"\n[[models]]\nid = "qwen"\nfetch = "o/r"',
            "lifecycle.default_model: 'qwem' is not the id of any [[models]] table; did you mean 'qwen'?",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(text: str, expected: str) -> None:
    assert sentence(write(text)) == expected


def test_toml_that_is_none_is_said_with_its_line() -> None:
    message = sentence(write("[server]\nport = = 1"))
    assert message.startswith("config.toml: not valid TOML: ")
    assert "line 2" in message


def test_a_file_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence(Path("absent.toml")) == "absent.toml: cannot be read: No such file or directory."
    monkeypatch.setenv("CONFIGI_CONFIG", "named.toml")
    assert sentence() == "named.toml: cannot be read: No such file or directory."
    Path("binary.toml").write_bytes(b"\xff\xfe")
    assert sentence(Path("binary.toml")) == "binary.toml: not a UTF-8 text file."


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "CONFIGI_SERVER__PROT",
            "1",
            "environment: unknown variable CONFIGI_SERVER__PROT; did you mean 'CONFIGI_SERVER__PORT'?",
        ),
        (
            "CONFIGI_PORT",
            "1",
            "environment: unknown variable CONFIGI_PORT; did you mean 'CONFIGI_SERVER__PORT'?",
        ),
        (
            "CONFIGI_LIFECYCLE__MEMORY_LIMIT_BYTES",
            "1",
            "environment: unknown variable CONFIGI_LIFECYCLE__MEMORY_LIMIT_BYTES; "
            "did you mean 'CONFIGI_LIFECYCLE__MEMORY_LIMIT'?",
        ),
        (
            "CONFIGI_SERVER__MAX_BODY_BYTES",
            "1",
            "environment: unknown variable CONFIGI_SERVER__MAX_BODY_BYTES; did you mean 'CONFIGI_SERVER__MAX_BODY'?",
        ),
        (
            "CONFIGI_SERVER__PORT",
            "abc",
            "environment: CONFIGI_SERVER__PORT: server.port: input should be a valid integer, "
            "unable to parse string as an integer, got 'abc'.",
        ),
    ],
)
def test_a_mistake_in_the_environment_is_one_sentence(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert sentence() == expected


def test_a_list_in_the_environment_that_is_no_json_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIGI_SERVER__ALLOWED_HOSTS", "a.example")
    assert sentence().endswith("; lists and tables are written as JSON.")


def test_a_flag_out_of_range_is_named_as_a_flag() -> None:
    message = sentence(overrides={"server": {"port": -1}})
    assert message == "--port: server.port: input should be greater than or equal to 0, got -1."


def test_a_secret_is_never_shown() -> None:
    message = sentence(write("[server]\napi_key = 123456789"))
    assert message == "config.toml: server.api_key: input should be a valid string."
    settings = load_settings(write('[server]\napi_key = "sesame"'), {})
    assert "sesame" not in repr(settings)
    assert settings.server.api_key is not None
    assert settings.server.api_key.get_secret_value() == "sesame"


def test_a_path_may_start_with_the_home_folder(tmp_path: Path) -> None:
    settings = load_settings(write('[storage]\ncache_dir = "~/models"'), {})
    assert settings.storage.cache_dir == tmp_path / "models"


def test_config_toml_holds_every_key_with_its_default_and_loads_as_the_defaults() -> None:
    assert (ROOT / "config.toml").read_text(encoding="utf-8") == config_toml()
    assert load_settings(ROOT / "config.toml", {}) == Settings()
    for row in setting_rows():
        assert row.description, row
        assert f"\n{row.key} = " in config_toml() or f"\n# {row.key} = " in config_toml()


def test_the_rows_describe_type_and_default_as_the_file_writes_them() -> None:
    rows = {(row.section, row.key): row for row in setting_rows()}
    assert (rows["server", "port"].type, rows["server", "port"].default) == ("integer", "8080")
    assert rows["log", "format"].type == '"auto" or "text" or "json"'
    sizes = [(row.type, row.default) for row in rows.values() if row.key in ("max_body", "memory_limit", "disk_limit")]
    assert {kind for kind, _ in sizes} == {'bytes, or text like "4GB"'}
    assert [default for _, default in sizes] == ['"8MB"', "0", '"4GB"', '"10GB"']
    assert rows["models", "aliases"].type == "list of texts"
    assert (rows["server", "api_key"].type, rows["server", "api_key"].default) == ("secret text", "")
    assert len(rows) == sum(1 for _ in setting_rows()) > 40


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost/", "HTTP://localhost", "http://*.example", "http://localhost:80", "https://app.example:443",
        "localhost:3000", "http://localhost:**", "http://user@host", "",
    ],
)  # fmt: skip
def test_an_origin_that_can_never_match_is_refused(origin: str) -> None:
    assert "can never match" in sentence(write(f'[server]\nallowed_origins = ["{origin}"]'))


def test_origins_as_browsers_send_them_are_accepted() -> None:
    origins = ["*", "null", "http://localhost:*", "http://[::1]:5173", "vscode-webview://0a1b", "tauri://localhost"]
    assert load_settings(write(f"[server]\nallowed_origins = {origins}"), {}).server.allowed_origins == origins


@pytest.mark.parametrize("host", ["my-mac:8080", "http://my-mac", "[::1]", "my mac", ""])
def test_a_host_that_can_never_match_is_refused(host: str) -> None:
    assert "can never match" in sentence(write(f'[server]\nallowed_hosts = ["{host}"]'))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[server.api_keys]\na = "k"\nb = "k"', "two clients have the same key"),
        ('[server]\napi_key = "k"\n[server.api_keys]\nb = "k"', "two clients have the same key"),
        ('[server.api_keys]\na = "sha256:12"', "the hash of 'a'"),
        ('[server.api_keys]\na = ""', "at least one character"),
        ('[server.api_keys]\n"a b" = "k"', "a name has 1 to 64"),
        ('[server.api_keys]\ndefault = "k"', "is not 'default'"),
        ('[server]\nbody_budget = "1MB"', "server.body_budget"),
        ('[cache]\nshare = "key"', '"key" needs server.api_key or server.api_keys'),
    ],
)
def test_keys_that_do_not_go_together_are_refused(toml: str, words: str) -> None:
    assert words in sentence(write(toml))


def test_no_key_is_shown_in_what_is_wrong_with_another() -> None:
    assert "sesame" not in sentence(write('[server.api_keys]\na = "sesame"\nb = 3'))


@pytest.mark.parametrize(
    ("given", "platform", "seconds"),
    [(None, "darwin", 1800), (None, "linux", math.inf), (0, "darwin", math.inf), (60, "linux", 60)],
)
def test_a_mac_gets_its_memory_back_after_half_an_hour_unless_told_otherwise(
    given: float | None, platform: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert LifecycleSettings(idle_unload_s=given).idle_s == seconds


@pytest.mark.parametrize("size", ['"80%"', '"1,5GB"', '"4 gigs"', '"4GB extra"', '"-1GB"', '""', "4.5", "true"])
def test_a_size_is_read_whole_or_not_at_all(size: str) -> None:
    """pydantic took 80 bytes for "80%", and one for "1,5GB"."""
    write(f"[cache]\nmemory_limit = {size}\n")
    said = sentence()
    assert said.startswith("config.toml: cache.memory_limit: ") and "is no size" in said


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("5", 5),
        ('"5"', 5),
        ('"4GB"', 4 * 10**9),
        ('"1.5 GB"', 15 * 10**8),
        ('"512mib"', 2**29),
        ('"2kB"', 2000),
        ('"7b"', 7),
    ],
)
def test_a_size_has_a_unit_or_is_bytes(size: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"[cache]\nmemory_limit = {size}\n")
    assert load_settings(None, {}).cache.memory_limit == expected
    write("")
    monkeypatch.setenv("CONFIGI_CACHE__MEMORY_LIMIT", size.strip('"'))
    assert load_settings(None, {}).cache.memory_limit == expected


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1:8080", "[::1]", "*", "a b"])
def test_an_address_to_listen_on_is_an_address(host: str) -> None:
    write(f'[server]\nhost = "{host}"\n')
    assert sentence().startswith(f"config.toml: server.host: '{host}' is no address to listen on")
    write("")
    assert sentence(overrides={"server": {"host": host}}).startswith(f"--host: server.host: '{host}' is no address")


@pytest.mark.parametrize("host", ["::1", "0.0.0.0", "localhost", "my-mac.local", "fe80::1", ""])
def test_so_are_these(host: str) -> None:
    assert load_settings(None, {"server": {"host": host}}).server.host == host


def test_a_date_is_no_text_and_blamed_on_the_file() -> None:
    write("[server]\nhost = 2026-01-01\n")
    assert sentence().startswith("config.toml: server.host: input should be a valid string")


@pytest.mark.parametrize(
    ("name", "value"),
    [("CONFIGI_SERVER__ALLOWED_HOSTS", "a,b"), ("CONFIGI_SERVER__API_KEYS", "a=b"), ("CONFIGI_MODELS", "x")],
)
def test_a_variable_that_is_no_json_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIGI_SERVER__HOST", "plain")
    monkeypatch.setenv(name, value)
    assert sentence() == f"environment: {name} is not valid JSON; lists and tables are written as JSON."
