"""Which prompts run on which Mac: Gemma 4 26B-A4B in three sizes, on Macs of 8 to 512 GB, with the load check and the
admission that the server has. Arithmetic only; nothing here ran on a Mac."""

from __future__ import annotations

import pytest

from quantize.machine import fits, metal_limit
from server.engine.admission import Admission
from server.engine.cost_model import KVCostModel
from server.engine_client.protocol import Generate, Request, Sampling

GIB = 2**30
# Five layers see everything: 2 heads of 512, keys and values, bf16; 25 have windows of 1,024 tokens of 8 KB. Of a
# chunk's token: 128 experts' worth of activations is a guess. 16 heads of scores in bf16, two layers' worth of them.
GEMMA = KVCostModel(
    per_token=5 * 4096,
    windows=((8192, 1024),) * 25,
    constant=0,
    activation_per_token=300_000,
    per_score=64,
    per_window_score=64,
    per_context=4096,
)
WEIGHTS = {"config-i": 11_990_000_000, "no2bit": 11_890_000_000, "16gb": 10_320_000_000}
PROMPTS = (1_000, 8_000, 16_000, 32_000, 65_000, 131_000, 262_000)
# What runs beside those that are to wait: a conversation of 8,000 tokens that is being answered.
BESIDE = 8_000


def request(tokens: int, id: int = 1) -> Generate:
    return Generate(id=id, prompt=[0] * tokens, max_tokens=32_000, stop_tokens=[], sampling=Sampling(seed=0))


def admission_on(memory_gib: int, policy: str) -> Admission | None:
    """None where the model is not loaded."""
    limit = metal_limit(memory_gib * GIB)
    return Admission(limit, WEIGHTS[policy], GEMMA) if fits(WEIGHTS[policy], limit) else None


def outcome(memory_gib: int, policy: str, tokens: int) -> str:
    """How a prompt fares: "runs" also beside the other one, "waits" for it to end, is "refused", or its model is."""
    admission = admission_on(memory_gib, policy)
    if admission is None:
        return "no model"
    if admission.refusal(request(tokens)):
        return "refused"
    running: list[tuple[Request, int]] = [(request(BESIDE, 2), BESIDE)]
    return "runs" if admission.fits(request(tokens), running) else "waits"


# Of PROMPTS, how many run at once, how many more have to wait, and so how many are refused.
TABLE = {
    (8, "config-i"): None, (8, "no2bit"): None, (8, "16gb"): None,
    (16, "config-i"): None, (16, "no2bit"): None, (16, "16gb"): (0, 3),
    (18, "config-i"): (0, 3), (18, "no2bit"): (0, 3), (18, "16gb"): (3, 1),
    (24, "config-i"): (4, 2), (24, "no2bit"): (4, 2), (24, "16gb"): (5, 1),
    (32, "config-i"): (6, 1), (32, "no2bit"): (6, 1), (32, "16gb"): (6, 1),
    (36, "config-i"): (6, 1), (36, "no2bit"): (6, 1), (36, "16gb"): (6, 1),
    **{(memory, policy): (7, 0) for memory in (48, 64, 96, 128, 192, 256, 512) for policy in WEIGHTS},
}  # fmt: skip


@pytest.mark.parametrize(("memory", "policy"), TABLE)
def test_what_runs_waits_and_is_refused(memory: int, policy: str) -> None:
    expected = TABLE[memory, policy]
    run, wait = expected or (0, 0)
    refused = "no model" if expected is None else "refused"
    rest = len(PROMPTS) - run - wait
    assert [outcome(memory, policy, tokens) for tokens in PROMPTS] == [
        *["runs"] * run,
        *["waits"] * wait,
        *[refused] * rest,
    ]


def test_a_stock_mac_of_16_gb_has_a_usable_context_with_the_model_made_for_it() -> None:
    admission = admission_on(16, "16gb")
    assert admission is not None
    assert admission.most_tokens > 20_000
    assert admission.refusal(request(32_000)) == (
        "The prompt of 32000 tokens needs 1.16 GB of memory beside the model; 906.6 MB is available."
    )
    # And reads it in chunks that are worth a sweep of the weights.
    free = admission.weights + GEMMA.kv_bytes(8_000)
    assert admission.max_chunk(free, 8_000) > 500


def test_chunks_shrink_as_the_context_grows_whatever_memory_there_is() -> None:
    admission = admission_on(128, "config-i")
    assert admission is not None
    chunks = [admission.max_chunk(admission.weights, context) for context in (8_000, 32_000, 65_000, 131_000, 262_000)]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] > 2048 > chunks[1] > 1024 > chunks[2] > 512 > chunks[4] > 64


STOCK = [(16, "16gb", 15_300), (18, "config-i", 8_600), (24, "config-i", 146_000)]


@pytest.mark.parametrize(("memory", "policy"), [stock[:2] for stock in STOCK])
def test_every_prompt_that_can_be_answered_is_kept_for_the_next_turn(memory: int, policy: str) -> None:
    """As its caches become what is kept: what `docs/limits.md` says."""
    admission = admission_on(memory, policy)
    assert admission is not None
    longest = admission.most_tokens
    assert GEMMA.kv_bytes(longest) <= admission.beside([], longest)


@pytest.mark.parametrize(("memory", "policy", "tokens"), STOCK)
def test_so_is_the_state_at_its_end_which_an_answer_goes_beyond_up_to_most_of_them(
    memory: int, policy: str, tokens: int
) -> None:
    admission = admission_on(memory, policy)
    assert admission is not None
    windows = sum(size * most for size, most in GEMMA.windows)

    def is_kept(tokens: int) -> bool:
        running: list[tuple[Request, int]] = [(request(tokens), tokens)]
        at_the_end = GEMMA.kv_bytes(tokens) + windows
        return windows <= admission.beside(running) and at_the_end <= admission.beside([], tokens)

    assert is_kept(tokens)
    assert not is_kept(int(tokens * 1.03))
    assert tokens > admission.most_tokens / 2
