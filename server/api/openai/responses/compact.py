"""POST /v1/responses/compact: the model sums a conversation up, and the sum stands for it from then on. Pure."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

import msgspec

from server.api.collected import Answer
from server.api.opaque import enclosed
from server.api.openai.responses.request import ResponseCall
from server.api.openai.shown import response_usage
from server.chat.conversation import Conversation, GenerationRequest
from server.chat.parts import Message
from server.chat.tools import ToolChoice

_TASK = (
    "Write down everything from the conversation above that is needed to continue it: the goal, what was decided and "
    "done, files and names as they are spelled, what is open. No greeting, no comment, only the facts."
)
_LEAD = "What was said before, in short:\n\n"


def compaction_request(asked: GenerationRequest) -> GenerationRequest:
    """The tools stay declared, so that the prompt begins as the conversation's did and is found in the prefix cache."""
    assert isinstance(asked.prompt, Conversation)
    messages = (*asked.prompt.messages, Message.plain("user", _TASK))
    options = replace(asked.options, tool_choice=ToolChoice("none"), shape=None, top_logprobs=None)
    return replace(asked, prompt=msgspec.structs.replace(asked.prompt, messages=messages), options=options)


def compacted(answer: Answer, call: ResponseCall) -> dict[str, Any]:
    """What the user said, word for word, then the sum."""
    said = [item for item in call.items if isinstance(item, dict) and item.get("role") == "user"]
    kept = [_message(item) for item in said]
    summary = enclosed(_LEAD + answer.choices[0].text.strip())
    item = {"id": f"cmp_{uuid.uuid4().hex}", "type": "compaction", "encrypted_content": summary}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*kept, item],
        "usage": response_usage(answer.usage),
    }


def _message(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return {"id": f"msg_{uuid.uuid4().hex}", **item, "type": "message", "status": "completed", "content": parts}
