"""Two models, clients that come and leave, engines that are killed: nobody waits for ever, and it serves afterwards."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support.running import Running
from tests.support.streams import send, until
from tests.support.tiny_model import write_tiny_model
from tests.support.two_models import serving_two, states

_SECONDS = 20
_CLIENTS = 16


@pytest.mark.slow
def test_whatever_dies_and_leaves_every_request_ends_and_the_server_serves(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    script = ("--interval", "0.003", "--load-seconds", "0.05")
    settings = {
        "engine": {"restart_backoff_s": 0.01, "restart_limit": 2, "max_concurrent": 4},
        "lifecycle": {"idle_unload_s": 0.05, "failed_retry_s": 0.2},
    }
    with serving_two(tmp_path, model, model, *script, **settings) as server:
        end = time.monotonic() + _SECONDS
        wrong: list[object] = []
        threads = [
            *(
                threading.Thread(target=_client, args=(server, seed, end, wrong), daemon=True)
                for seed in range(_CLIENTS)
            ),
            threading.Thread(target=_killer, args=(server, end), daemon=True),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_SECONDS + 30)
        assert not [thread for thread in threads if thread.is_alive()], "a request waits for ever"
        assert wrong == []
        until(lambda: server.chat(max_tokens=1)[0] == 200)
        until(lambda: set(states(server).values()) == {"absent"})
        assert server.engines() == []
        assert server.stop() == 0


def _client(server: Running, seed: int, end: float, wrong: list[object]) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end:
        streaming = chance.random() < 0.5
        fields = {"model": chance.choice(["tiny", "other"]), "max_tokens": chance.randint(1, 40)}
        connection = send(server, stream=streaming, n=chance.choice([1, 2]), **fields)
        with contextlib.closing(connection):
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.2)
                continue
            response = connection.getresponse()
            body = response.read()
            if response.status not in (200, 500, 503) or (
                streaming and response.status == 200 and not body.endswith(b"data: [DONE]\n\n")
            ):
                wrong.append((response.status, body))


def _killer(server: Running, end: float) -> None:
    chance = random.Random(0)
    while time.monotonic() < end:
        time.sleep(chance.random())
        for engine in server.engines():
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()
