# /// script
# dependencies = ["guidellm"]
# [tool.driver]
# client = "guidellm"
# apis = ["chat", "completions", "responses"]
# ///
"""guidellm as people run it: a benchmark by its command, told by its report. A PyTorch for CPUs is enough for it."""

import functools
import json
import subprocess
import sys
from pathlib import Path

from drive import API, BASE, CAPITAL, KEY, MODEL, Lacks, feature, main

_FORMATS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
_ASKED, _REPORT = Path("asked.jsonl"), Path("report.json")
_COMMAND = """\
run --data kind=json_file,path={asked} --profile kind=synchronous --constraint kind=max_requests,count=2
--output kind=json,path={report} --disable-console"""


@functools.cache
def benchmark(model=MODEL, key=KEY, stream=True):
    """What it reports of its requests, those that went well first."""
    _ASKED.write_text(2 * (json.dumps({"prompt": CAPITAL, "output_tokens_count": 8}) + "\n"))
    _REPORT.unlink(missing_ok=True)
    backend = f"kind=openai_http,target={BASE},model={model},api_key={key},request_format={_FORMATS[API]},"
    program = Path(sys.executable).with_name("guidellm")
    words = _COMMAND.format(asked=_ASKED, report=_REPORT).split()
    done = subprocess.run(
        [program, *words, "--backend", backend + f"stream={str(stream).lower()}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert _REPORT.exists(), done.stdout[-1000:] + done.stderr[-1000:]
    requests = json.loads(_REPORT.read_text())["benchmarks"][0]["requests"]
    return [*requests["successful"], *requests["errored"]]


def _refused(status, **changed):
    for request in benchmark(stream=False, **changed):
        assert status in request["info"]["error"], request["info"]["error"]
    raise Lacks(f"of a refusal it reports the status alone: {status}")


@feature
def plain():
    one, two = benchmark(stream=False)
    assert one["output"] == two["output"]
    return one["output"]


@feature
def stream():
    """The report counts the pieces, and has their text together."""
    one, _ = benchmark()
    return list(one["output"]) if one["info"]["timings"]["token_iterations"] > 1 else [one["output"]]


@feature
def usage():
    one, _ = benchmark()
    asked, made = one["input_metrics"], one["output_metrics"]
    return [asked["text_tokens"], made["text_tokens"], asked["cached_tokens"]]


@feature
def unknown_model():
    _refused("404", model="nobody")


@feature
def wrong_key():
    _refused("401", key="wrong")


main()
