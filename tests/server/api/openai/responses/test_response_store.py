"""Stored responses: whose they are, and when they go."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.opaque import enclosed, opened
from server.api.openai.responses.store import ResponseStore
from server.errors import InvalidRequest, NotFound


def _body(id: str, text: str = "") -> dict[str, Any]:
    return {"id": id, "output": [{"id": f"msg_{id}", "text": text}]}


def _kept(store: ResponseStore, owner: str, *ids: str) -> list[str]:
    found = []
    for id in ids:
        try:
            found.append(store.get(owner, id).body["id"])
        except NotFound:
            continue
    return found


def test_a_response_is_its_owners_alone() -> None:
    store = ResponseStore(10_000, 60)
    store.put("ada", _body("a"), [])
    assert _kept(store, "ada", "a") == ["a"]
    for attempt in (store.get, store.delete):
        with pytest.raises(NotFound):
            attempt("eve", "a")
    assert (store.item("ada", "msg_a"), store.item("eve", "msg_a")) == (_body("a")["output"][0], None)


def test_the_oldest_make_room_and_what_is_too_large_is_not_kept() -> None:
    store = ResponseStore(1000, 60)
    for id in ("a", "b", "c"):
        store.put("ada", _body(id, "x" * 400), [])
    assert _kept(store, "ada", "a", "b", "c") == ["b", "c"]
    store.put("ada", _body("huge", "x" * 2000), [])
    assert _kept(store, "ada", "b", "c", "huge") == ["b", "c"]
    assert _kept(ResponseStore(0, 60), "ada", "a") == []


def test_a_response_goes_when_its_time_is_over() -> None:
    now = [0.0]
    store = ResponseStore(10_000, 60, clock=lambda: now[0])
    store.put("ada", _body("a"), [])
    now[0] = 59
    store.put("ada", _body("b"), [])
    now[0] = 61
    assert _kept(store, "ada", "a", "b") == ["b"]


@pytest.mark.parametrize("text", ["", "What was thought.", "é☃\n" * 1000])
def test_what_a_client_carries_comes_back(text: str) -> None:
    assert text == opened(enclosed(text), "input.0") and (not text or text not in enclosed(text))


@pytest.mark.parametrize(
    "content", ["", "gAAAA", "configi1.", "configi1.!!!", enclosed("whole")[:-4], enclosed("0" * 2**23)]
)
def test_what_this_server_has_not_enclosed_is_refused(content: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        opened(content, "input.3")
    assert caught.value.param == "input.3.encrypted_content"
