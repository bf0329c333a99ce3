"""What is told of a model before anybody uses it: its files are read, and nothing is fetched, loaded or kept for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fim_model import write_fim_model
from tests.support.running import Running, serving_script
from tests.support.streams import until
from tests.support.tiny_model import write_tiny_model
from tests.support.tool_model import write_tool_model
from tests.support.two_models import serving_two, states


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of a model with tools and thoughts, and one with tokens for filling in the middle."""
    folder = tmp_path_factory.mktemp("described")
    with serving_two(folder, write_tool_model(folder / "tools"), write_fim_model(folder / "fim", context=1024)) as up:
        yield up


def capabilities(server: Running, model: str) -> list[str]:
    found = server.post("/api/show", {"model": model})[1]["capabilities"]
    assert isinstance(found, list)
    return found


def test_each_model_is_described_by_its_own_files_and_none_is_loaded(server: Running) -> None:
    assert capabilities(server, "tiny") == ["completion", "tools", "thinking"]
    assert capabilities(server, "other") == ["completion", "insert"]
    listed = {model["id"]: model for model in server.get("/v1/models")[1]["data"]}
    assert {name: model["context_length"] for name, model in listed.items()} == {"tiny": 4096, "other": 1024}
    assert states(server) == {"tiny": "absent", "other": "absent"}
    assert server.engines() == []


def test_reading_them_leaves_no_process_behind_and_the_first_request_is_served(server: Running) -> None:
    assert server.get("/api/tags")[0] == 200
    until(lambda: not server.texts())
    server.assert_still_serves()
    info = server.get("/tokenizer_info")[1]
    assert (info["eos_token"], "<tool_call>" in info["chat_template"]) == ("<|im_end|>", True)


def test_what_is_not_on_this_machine_is_not_fetched_to_be_described(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with serving_script(tmp_path, model) as server:
        # As it is before a model was ever fetched.
        model.rename(tmp_path / "away")
        shown = server.post("/api/show", {"model": "tiny"})[1]
        assert (shown["capabilities"], "llama.context_length" in shown["model_info"]) == (["completion"], False)
        assert states(server) == {"tiny": "absent"}
        (tmp_path / "away").rename(model)
        assert server.post("/api/show", {"model": "tiny"})[1]["model_info"]["llama.context_length"] == 2048


def test_broken_files_are_no_error_of_the_list(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    with serving_script(tmp_path, model) as server:
        status, answer = server.get("/api/v0/models")
        assert (status, answer["data"][0]["capabilities"]) == (200, [])
        assert server.get("/tokenizer_info")[0] == 503


def test_quantized_weights_are_told_by_their_bits(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}))
    with serving_script(tmp_path, model) as server:
        assert server.get("/api/tags")[1]["models"][0]["details"]["quantization_level"] == "4-bit"
        assert server.get("/api/v0/models/tiny")[1]["quantization"] == "4bit"


def test_files_that_others_have_written_since_are_described_anew(tmp_path: Path) -> None:
    model = write_fim_model(tmp_path / "model", context=1024)
    with serving_script(tmp_path, model) as server:
        assert capabilities(server, "tiny") == ["completion", "insert"]
        until(lambda: not server.texts())
        write_tool_model(model)
        assert capabilities(server, "tiny") == ["completion", "tools", "thinking"]
        assert server.get("/v1/models/tiny")[1]["context_length"] == 4096
        until(lambda: not server.texts())
        model.rename(tmp_path / "away")
        assert capabilities(server, "tiny") == ["completion"]
