"""A chat template that its publisher has replaced is named, by what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantize.folder.stale_template import stale_template
from tests.support.packages import published_templates

FIRST = "{% for r in m['tool_responses'] %}{{ '<|tool_response>' + r['response'] }}{% endfor %}"


def test_a_template_without_a_look_for_the_call_of_a_result_is_named_with_its_hash(tmp_path: Path) -> None:
    assert stale_template(tmp_path) is None
    # As transformers writes a limit that it does not know.
    config = {"chat_template": FIRST, "model_max_length": int(1e30)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert "sha256 " in str(stale_template(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert stale_template(tmp_path) is None


@pytest.mark.slow
def test_of_the_published_revisions_the_first_is_named(tmp_path: Path) -> None:
    published = published_templates("trl")
    named = set()
    for name in ("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"):
        (tmp_path / "chat_template.jinja").write_text(published[name])
        if stale_template(tmp_path):
            named.add(name)
    assert named == {"gemma4_v2"}
