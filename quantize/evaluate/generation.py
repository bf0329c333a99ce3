"""Greedy generation with a model in memory, as it is served: how fast it is, and whether it ends in a loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from quantize.calibrate.tokens import begun
from quantize.errors import SourceError, first_line
from quantize.evaluate.loops import Loop, find_loop
from quantize.evaluate.tasks.tool_calls import DeclaredTool, WrittenCall
from quantize.forward.loading import load_folder
from quantize.forward.tokenizer import tokenizer_in

_CALL_TOKENS = 256


class Speed(msgspec.Struct, frozen=True):
    """Tokens a second of prefill and of decode, seconds to the first token, bytes of memory at the most."""

    prompt_tokens: int
    prefill: float
    decode: float
    first_token_s: float
    peak_memory: int


class TimedRun(msgspec.Struct, frozen=True):
    """`ended`: by the model's own end of text. `loop`: what the tokens end in."""

    tokens: list[int]
    ended: bool
    loop: Loop | None
    speed: Speed


class Generator:
    """Raises SourceError when mlx-lm cannot load the folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizer_in(folder, folder.name)
        try:
            self.model = load_folder(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SourceError) as error:
            raise SourceError(f"mlx-lm cannot load {folder.name}: {first_line(error)}") from error

    def encode(self, messages: Sequence[Any]) -> list[int]:
        """The prompt of a conversation; of a model without a chat template the texts alone."""
        if not self.tokenizer.has_chat_template:
            return begun(self.tokenizer, "\n".join(str(message["content"]) for message in messages))
        ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, enable_thinking=False)
        return list(ids)

    def ask(self, messages: Sequence[Any], max_tokens: int) -> str:
        return str(self.tokenizer.decode(self.run(self.encode(messages), max_tokens).tokens))

    @property
    def calls_tools(self) -> bool:
        """Whether the template declares tools in a form that mlx-lm knows."""
        return bool(self.tokenizer.has_tool_calling)

    def calls(self, request: str, tools: Sequence[DeclaredTool]) -> list[WrittenCall]:
        """Of the reply, as mlx-lm's own parser reads them; what it cannot read has no name."""
        messages = [{"role": "user", "content": request}]
        ids = self.tokenizer.apply_chat_template(
            messages, tools=list(tools), add_generation_prompt=True, enable_thinking=False
        )
        text = str(self.tokenizer.decode(self.run(list(ids), _CALL_TOKENS).tokens))
        start, end = self.tokenizer.tool_call_start, self.tokenizer.tool_call_end
        # Without a mark for its end, a call goes on to that of the reply.
        written = [part.partition(end)[0] if end else part for part in text.split(start)[1:]]
        return [call for part in written for call in self._parsed(part, tools)]

    def _parsed(self, written: str, tools: Sequence[DeclaredTool]) -> list[WrittenCall]:
        try:
            found = self.tokenizer.tool_parser(written, list(tools))
            calls = found if isinstance(found, list) else [found]
            return [(str(call["name"]), call["arguments"]) for call in calls]
        except Exception:  # A parser of a form that the text does not have may raise anything.
            return [("", None)]

    def next_logits(self, tokens: Sequence[int]) -> mx.array:
        """(vocabulary,) of the token that comes after `tokens`."""
        logits: mx.array = self.model(mx.array([list(tokens)]))[0, -1]
        return logits

    def run(self, prompt: Sequence[int], max_tokens: int) -> TimedRun:
        from mlx_lm.generate import generate_step

        mx.reset_peak_memory()
        tokens: list[int] = []
        ends = set(self.tokenizer.eos_token_ids)
        began = time.perf_counter()
        first = last = began
        for token, _ in generate_step(mx.array(list(prompt)), self.model, max_tokens=max_tokens):
            last = time.perf_counter()
            first = first if tokens else last
            if token in ends:
                break
            tokens.append(int(token))
        ended = len(tokens) < max_tokens
        decode = (len(tokens) - 1) / (last - first) if len(tokens) > 1 else 0.0
        prefill = len(prompt) / (first - began) if first > began else 0.0
        speed = Speed(len(prompt), prefill, decode, first - began, int(mx.get_peak_memory()))
        return TimedRun(tokens, ended, None if ended else find_loop(tokens), speed)
