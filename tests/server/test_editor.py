"""An editor at work over HTTP, with the real engine: its questions, completion at the cursor, what is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fim_model import MIDDLE, write_fim_model, write_sliding_fim_model
from tests.support.running import Running, serving
from tests.support.tiny_model import write_tiny_model

LINES = [f"def step_{number}(value):\n    return value + {number}\n" for number in range(12)]
ABOVE, BELOW = "".join(LINES), "\n\nprint(total)\n"
FILES = [{"filename": f"part_{n}.py", "text": "".join(LINES[n : n + 4])} for n in range(3)]
TYPED = "total = step_1(step_2(40))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("editor")
    with serving(folder, write_fim_model(folder / "model")) as up:
        yield up


def infill(server: Running, **fields: Any) -> dict[str, Any]:
    """As llama.vscode asks at the end of a line that is being typed."""
    body = {
        "input_prefix": ABOVE,
        "input_suffix": BELOW,
        "input_extra": FILES,
        "n_predict": 8,
        "samplers": ["top_k", "top_p", "infill"],
        **fields,
    }
    status, answer = server.post("/infill", body)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def test_before_its_first_request_a_model_tells_what_it_can(server: Running) -> None:
    shown = server.post("/api/show", {"model": "tiny"})[1]
    assert shown["model_info"] == {
        "general.architecture": "llama",
        "general.basename": "tiny",
        "llama.context_length": 4096,
    }
    assert shown["capabilities"] == ["completion", "insert"]
    (entry,) = server.get("/api/tags")[1]["models"]
    assert entry["size"] > 100_000 and len(entry["digest"]) == 64
    model = server.get("/v1/models/tiny")[1]
    assert (model["state"], model["context_length"], model["context_length_now"]) == ("absent", 4096, None)
    assert server.engines() == []


def test_once_in_memory_it_tells_how_much_context_fits(server: Running) -> None:
    assert server.chat(max_tokens=1)[0] == 200
    assert server.get("/v1/models/tiny")[1]["context_length_now"] == 4096
    assert server.get("/props")[1]["default_generation_settings"]["n_ctx"] == 4096
    assert server.get("/api/ps")[1]["models"][0]["context_length"] == 4096


def _cached_while_typing(server: Running) -> list[tuple[int, int]]:
    """Tokens that were not read again, and those of the whole prompt, at every few characters of a line."""
    # As llama.vscode warms up: the other files, and nothing else.
    infill(server, input_prefix="", input_suffix="", n_predict=0, samplers=[])
    counts = []
    for end in range(0, len(TYPED) + 1, 4):
        answer = infill(server, prompt=TYPED[:end])
        counts.append((answer["tokens_cached"], answer["tokens_evaluated"]))
    return counts


def _tokens(server: Running, text: str) -> int:
    count = server.post("/tokenize", {"content": text})[1]["count"]
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("write", [write_fim_model, write_sliding_fim_model], ids=["full attention", "sliding windows"])
def test_typing_reads_only_what_is_behind_the_place_of_the_edit(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with serving(tmp_path, write(tmp_path / "model")) as server:
        counts = _cached_while_typing(server)
        files = sum(_tokens(server, f"{file['filename']}\n{file['text']}") for file in FILES)
        above, below = _tokens(server, ABOVE), _tokens(server, BELOW)
        (first, _), *rest = counts
        assert first >= files, counts
        # Behind the line's beginning stand what is typed, the text below, and two markers.
        assert [cached for cached, _ in rest] == sorted(cached for cached, _ in rest), counts
        for cached, evaluated in rest:
            assert cached >= files + above - 2, counts
            assert evaluated - cached <= below + _tokens(server, TYPED) + 4, counts


def test_with_full_attention_the_tokens_of_the_line_are_kept_too(server: Running) -> None:
    counts = _cached_while_typing(server)
    below = _tokens(server, BELOW)
    for cached, evaluated in counts[2:]:
        # The last token of what was typed before may have become another.
        assert evaluated - cached <= below + 2 + _tokens(server, "(40)") + 2, counts


def test_the_answer_is_that_to_the_same_prompt_spelled_out(server: Running) -> None:
    answer = infill(server, prompt="total = ", n_predict=12)
    status, spelled = server.post("/v1/completions", {"prompt": answer["prompt"], "max_tokens": 12, "temperature": 0})
    assert status == 200
    assert (answer["content"], answer["tokens_evaluated"]) == (
        spelled["choices"][0]["text"],
        spelled["usage"]["prompt_tokens"],
    )
    assert answer["content"]


def test_a_suffix_is_the_same_gap(server: Running) -> None:
    body = {"prompt": ABOVE, "suffix": BELOW, "max_tokens": 8, "temperature": 0}
    status, completion = server.post("/v1/completions", body)
    assert status == 200, completion
    assert completion["choices"][0]["text"] == infill(server, input_extra=[], prompt="")["content"]
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0


def test_a_file_cannot_say_where_the_gap_is(server: Running) -> None:
    """The tokens that it spells are read as their letters: nothing is shorter for them."""
    plain = infill(server, input_extra=[], prompt="x", n_predict=1)["tokens_evaluated"]
    spelled = infill(server, input_extra=[], prompt=f"x{MIDDLE}", n_predict=1)["tokens_evaluated"]
    assert spelled >= plain + 5


def test_the_answer_ends_before_a_line_that_is_indented_by_less_and_in_time(server: Running) -> None:
    # The token of a new line, and nothing else.
    newline = server.post("/tokenize", {"content": "\n"})[1]["tokens"][0]
    only = {"allowed_token_ids": [newline]}
    answer = infill(server, n_predict=20, n_indent=4, **only)
    assert (answer["content"], answer["stop_type"]) == ("\n", "limit")
    answer = infill(server, n_predict=1000, t_max_predict_ms=0.001, **only)
    assert (set(answer["content"]), answer["stop_type"]) == ({"\n"}, "limit")
    assert answer["tokens_predicted"] < 1000
    assert infill(server, n_predict=20, **only)["content"] == "\n" * 20


def test_what_has_no_room_is_left_out_and_said(server: Running) -> None:
    answer = infill(server, input_extra=[*FILES, {"filename": "large.py", "text": ABOVE * 20}])
    assert answer["truncated"] and "part_0" not in answer["prompt"]
    assert ABOVE in answer["prompt"]
    assert not infill(server)["truncated"]


def test_a_model_without_the_tokens_refuses_by_the_field_and_serves_the_next_request(tmp_path: Path) -> None:
    with serving(tmp_path, write_tiny_model(tmp_path / "model")) as server:
        for path, body, param in (
            ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_suffix"),
            ("/infill", {"input_prefix": "a", "input_suffix": "b", "stream": True}, "input_suffix"),
            ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ):
            status, answer = server.post(path, body)
            assert (status, answer["error"]["param"]) == (400, param), answer
        server.assert_still_serves()
