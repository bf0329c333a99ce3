"""The floor: mlx-lm's BatchGenerator in a process of its own, no server, no sockets: `python -m bench.raw MODEL`.

Reads JSON batches on stdin, `[[request body, ...], ...]`, runs one batch after the other, and writes for each
`{"seconds", "tokens", "ttft": [...]}`. A process of its own, so that it gets the environment that both servers get.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.prompts import Body
from bench.setup import ROOT, environment
from bench.sse import NoAnswer

_WARM_UP: Body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@dataclass(frozen=True, slots=True)
class Batch:
    """`ttft`: seconds to the first token, one for each request."""

    seconds: float
    tokens: int
    ttft: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Tokens a second, all requests together, prefill included."""
        return self.tokens / self.seconds


def batches(model: Path, requests: list[list[Body]], timeout: float = 900) -> list[Batch]:
    """Each list of `requests` at once, after a warm-up.

    Raises:
        NoAnswer: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.raw", str(model)],
        input=json.dumps([[_WARM_UP], *requests]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise NoAnswer(f"mlx-lm without a server failed: {done.stderr[-500:]}")
    return [Batch(b["seconds"], b["tokens"], tuple(b["ttft"])) for b in json.loads(done.stdout)[1:]]


def main() -> None:
    # Here, not above: the process that measures the servers needs no MLX.
    from mlx_lm import load

    model, tokenizer, *_ = load(sys.argv[1])
    json.dump([_run(model, tokenizer, batch) for batch in json.load(sys.stdin)], sys.stdout)


def _run(model: Any, tokenizer: Any, batch: list[Body]) -> dict[str, Any]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, stop_tokens=[[token] for token in tokenizer.eos_token_ids])
    start = time.perf_counter()
    prompts = [tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True) for body in batch]
    waiting = set(generator.insert(prompts, max_tokens=[body["max_tokens"] for body in batch]))
    first: dict[int, float] = {}
    tokens = 0
    while waiting:
        _, responses = generator.next()
        for response in responses:
            first.setdefault(response.uid, time.perf_counter() - start)
            tokens += 1
            if response.finish_reason is not None:
                waiting.discard(response.uid)
    seconds = time.perf_counter() - start
    generator.close()
    return {"seconds": seconds, "tokens": tokens, "ttft": list(first.values())}


if __name__ == "__main__":
    main()
