from __future__ import annotations

import pytest

from server.errors import ModelNotFound
from server.models.catalog import Catalog
from server.settings.types import LifecycleSettings, ModelSettings, Settings


def model(name: str, *aliases: str) -> ModelSettings:
    return ModelSettings(id=name, aliases=list(aliases), fetch="org/repo")


def catalog(default: str = "") -> Catalog:
    models = [model("org/Qwen", "gpt-*"), model("gemma", "gpt-4", "claude-?", "gemma-*"), model("gpt-oss")]
    return Catalog(Settings(models=models, lifecycle=LifecycleSettings(default_model=default)))


@pytest.mark.parametrize("name", [None, "", " ", "\n", "default"])
def test_no_name_means_the_default(name: str | None) -> None:
    assert catalog().resolve(name).id == "org/Qwen"
    assert catalog("gemma").resolve(name).id == "gemma"
    assert catalog("gemma").default.id == "gemma"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/Qwen", "org/Qwen"),
        # An id comes before any alias, and aliases go in the order of the configuration.
        ("gpt-oss", "gpt-oss"),
        ("gpt-4", "org/Qwen"),
        ("claude-3", "gemma"),
        ("gemma-4-26b", "gemma"),
    ],
)
def test_a_name_is_an_id_or_the_first_alias_that_matches(name: str, found: str) -> None:
    assert catalog().resolve(name).id == found


def test_a_model_may_be_called_default() -> None:
    models = [model("first"), model("default")]
    assert Catalog(Settings(models=models)).resolve("default").id == "default"


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("GEMMA", "gemma"), ("gemma ", "gemma"), ("org/qwen", "org/Qwen"), ("gema", "gemma"), ("GPT-OSS\n", "gpt-oss")],
)
def test_nearly_a_name_is_not_found_and_the_right_one_is_suggested(name: str, suggested: str) -> None:
    with pytest.raises(ModelNotFound, match=f"did you mean '{suggested}'") as caught:
        catalog().resolve(name)
    assert (caught.value.param, caught.value.status) == ("model", 404)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "~/models",
        ".",
        "a/b/c",
        "other/repo@main",
        "https://hub.example/org/repo",
        "gpt-4\nx",
        "gpt-\x1b[31m",
        "gpt-" + "4" * 10_000,
        "\x00",
        "\ud800",
        "CLAUDE-3",
    ],
)
def test_anything_else_is_a_short_printable_404(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog().resolve(name)
    message = caught.value.message
    assert message.isprintable()
    assert len(message) < 200
    message.encode()
