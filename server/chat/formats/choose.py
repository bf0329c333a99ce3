"""Which wire format a model has: what its chat template writes for a call is what the model was trained on."""

from __future__ import annotations

from server.chat.formats.format import ThoughtMarkers, WireFormat
from server.chat.formats.functiongemma import FunctionGemma
from server.chat.formats.gemma4 import Gemma4
from server.chat.formats.glm import Glm
from server.chat.formats.harmony import Harmony
from server.chat.formats.hermes import Hermes, Plain, Think
from server.chat.formats.llama3 import Llama3
from server.chat.formats.minimax_m2 import MiniMaxM2
from server.chat.formats.mistral import Mistral
from server.chat.formats.qwen3_coder import Qwen3Coder

FORMATS: dict[str, WireFormat] = {
    wire_format.name: wire_format
    for wire_format in (
        Gemma4(),
        FunctionGemma(),
        Harmony(),
        MiniMaxM2(),
        Qwen3Coder(),
        Glm(),
        Hermes(),
        Mistral(),
        Llama3(),
        Think(),
        Plain(),
    )
}


def _both(thought: ThoughtMarkers) -> tuple[str, str]:
    return thought.begin, thought.end


# Tokens of some vocabularies that are control tokens though they show text: no message may write them.
CONTROL_TEXTS = frozenset(
    {text for wire_format in FORMATS.values() for text in wire_format.tokens}
    | {text for wire_format in FORMATS.values() if wire_format.thought for text in _both(wire_format.thought)}
    | {"<tools>", "</tools>", "<tool_response>", "</tool_response>", "<|tool_response>", "<tool_response|>"}
)

# The first whose words are all in the template's source is meant; the more particular ones come first.
_SIGNS = (
    ("gemma4", ("<|tool_call>",)),
    ("functiongemma", ("<start_function_call>",)),
    ("harmony", ("<|channel|>", "<|message|>")),
    ("minimax-m2", ("<minimax:tool_call>",)),
    ("glm", ("<arg_key>", "<tool_call>")),
    ("qwen3-coder", ("<tool_call>", "<function=")),
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("llama3", ("<|start_header_id|>", '"parameters"', "tool_calls")),
    ("gemma4", ("<|channel>",)),
    ("mistral", ("[THINK]",)),
    ("think", ("<think>",)),
    ("think", ("</think>",)),
)


def choose(source: str | None) -> str:
    """The name of the format of a template's source."""
    for name, words in _SIGNS:
        if source is not None and all(word in source for word in words):
            return name
    return "plain"
