"""`configi demo` with a scripted engine: what it does when that one dies during its question."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running import running
from tests.support.tiny_model import write_tiny_model

DEMO = """
import functools, sys
import server.app, server.cli.demo
from server.cli.main import main
from server.settings.types import ModelSettings

server.cli.demo.DEMO_MODEL = ModelSettings(id="tiny", acquire="local", path={model!r})
command = (sys.executable, "-m", "tests.support.scripted_engine", *{script!r})
server.app.create_app = functools.partial(server.app.create_app, engine_command=command)
sys.argv = ["configi", "demo", "--port", "0", *{words!r}]
main()
"""


def demo(folder: Path, script: list[str], *words: str) -> list[str]:
    model = str(write_tiny_model(folder / "model"))
    return ["-c", DEMO.format(model=model, script=script, words=list(words))]


@pytest.mark.parametrize("dies", ["once", "always"])
def test_a_demo_whose_engine_dies_asks_once_more_and_goes_on_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    monkeypatch.setenv("CONFIGI_ENGINE__RESTART_BACKOFF_S", "0.01")
    monkeypatch.setenv("CONFIGI_CACHE__DISK_LIMIT", "0")
    script = ["--crash-at-step", "3", *(["--crash-once", str(tmp_path / "crashed")] if dies == "once" else [])]
    with running(demo(tmp_path, script), tmp_path) as server:
        assert server.process.stdout is not None
        shown = ""
        while "Serving on" not in shown:
            line = server.process.stdout.readline()
            assert line, shown
            shown += line
        told = shown.count("The engine process was killed by SIGKILL.")
        # One that died before any of its tokens arrived was asked again by the server itself, which says so in its log.
        unheard = "asked again" in server.log.read_text() and dies == "once"
        assert told + unheard == (1 if dies == "once" else 2)
        assert ("Asking once more." in shown) is (told > 0)
        assert ("64 tokens in" in shown) is (dies == "once")
        assert server.get("/health")[0] == 200
        if dies == "once":
            assert server.chat()[0] == 200
        assert server.stop() == 0


def test_a_demo_that_is_to_end_after_its_reply_fails_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIGI_ENGINE__RESTART_BACKOFF_S", "0.01")
    with running(demo(tmp_path, ["--crash-at-step", "3"], "--exit-after-reply"), tmp_path) as server:
        assert server.process.wait(60) == 1
