"""Every endpoint with the table of its fields, for the docs and the tests. No dialect knows it."""

from __future__ import annotations

from server.api.anthropic.table import MESSAGES
from server.api.compat.table import DETOKENIZE, INFILL, SHOW, TOKENIZE
from server.api.fields import Fields
from server.api.openai.decisions.table import DECISIONS
from server.api.openai.responses.table import RESPONSES
from server.api.openai.table import CHAT, COMPLETIONS

ENDPOINTS: dict[str, Fields] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/decisions": DECISIONS,
    "/v1/messages": MESSAGES,
    "/infill": INFILL,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/api/show": SHOW,
}
