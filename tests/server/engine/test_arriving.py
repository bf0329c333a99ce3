"""Requests that arrive together at an idle engine are read together, and one that arrives alone waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq

from server.engine import process
from server.engine.engine import Engine
from server.engine_client.protocol import Generate, Sampling, encode
from tests.support.questions import engine_of
from tests.support.streams import until
from tests.support.talks import Model

# Longer than any test: who waits for it hangs.
_FOR_EVER_MS = 10**7


@pytest.fixture
def engine(model: Model) -> Engine:
    return engine_of(model.raw, 448)


@pytest.fixture
def sockets() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Ours and the engine's."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as its:
        its.bind("inproc://engine")
        ours.connect("inproc://engine")
        yield ours, its


def _request(id: int, followed_by: int = 0) -> bytes:
    sampling = Sampling(seed=0, temperature=0)
    return encode(
        Generate(id=id, prompt=[70, 71, 72], max_tokens=2, stop_tokens=[], sampling=sampling, followed_by=followed_by)
    )


def test_a_request_that_is_followed_is_begun_with_those_behind_it(
    engine: Engine, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_FOLLOWED_WINDOW_MS", _FOR_EVER_MS)
    ours, its = sockets
    ours.send(_request(1, followed_by=2))
    receiving = threading.Thread(target=process.receive, args=(its, engine, _FOR_EVER_MS))
    receiving.start()
    for number in (1, 2):
        until(lambda number=number: engine.stats().waiting == number)  # type: ignore[misc]
        assert receiving.is_alive()
        ours.send(_request(number + 1, followed_by=2 - number))
    receiving.join(20)
    assert (receiving.is_alive(), engine.stats().waiting) == (False, 3)


def test_one_that_never_arrives_is_not_waited_for(
    engine: Engine, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    ours, its = sockets
    ours.send(_request(1, followed_by=1))
    assert process.receive(its, engine, _FOR_EVER_MS) == (1, [])


def test_while_the_engine_works_it_waits_for_nobody(
    engine: Engine, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_FOLLOWED_WINDOW_MS", _FOR_EVER_MS)
    ours, its = sockets
    ours.send(_request(1))
    assert process.receive(its, engine, _FOR_EVER_MS) == (1, [])
    ours.send(_request(2, followed_by=1))
    assert process.receive(its, engine, _FOR_EVER_MS) == (1, [])
