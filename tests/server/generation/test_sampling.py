"""What the engine is asked for, out of a request's options. Pure."""

from __future__ import annotations

import pytest

from server.chat.conversation import Client, GenerationOptions, Reasoning
from server.chat.encoded import EncodedInquiry, EncodedPrompt, EncodedQuestion
from server.chat.formats.format import ThoughtMarkers
from server.chat.grammar.constraint import Constraint
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import Branch, Grammar, Thought
from server.errors import InvalidRequest
from server.generation.sampling import generate_commands, score_command, thought_of
from tests.support.tiny_model import write_tiny_model
from tests.support.vocabulary import vocabulary_of

MARKERS = ThoughtMarkers("<think>\n", "</think>", "\n</think>\n\n")
HELD = Grammar(text="start: /a/")
LAZY = Grammar(text="start: /a/", opening=["a"])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = write_tiny_model(tmp_path_factory.mktemp("sampling") / "model", context=100)
    return vocabulary_of(ChatTokenizer.load(folder))


def prompt(text: str = "Hello") -> EncodedPrompt:
    return EncodedPrompt(ids=[5] * 60, boundaries=(), text=text)


def test_everything_that_holds_the_answer_reaches_the_engine(vocabulary: Vocabulary) -> None:
    options = GenerationOptions(
        n=2, min_tokens=7, allowed_token_ids=(70, 71), xtc_probability=0.5, xtc_threshold=0.2, bad_words=("x",)
    )
    constraint = Constraint(HELD, [[1, 2], [3]])
    for command in generate_commands(options, Client(), vocabulary, prompt(), constraint):
        sampling = command.sampling
        assert (command.grammar, command.thought, command.min_tokens) == (HELD, None, 7)
        assert (sampling.allowed, sampling.banned) == ([70, 71], [[1, 2], [3]])
        assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
        assert set(command.stop_tokens) == vocabulary.eos_ids


def test_what_all_options_of_a_question_begin_with_is_read_as_its_own() -> None:
    asked = {
        ((1, 2), ((7, 8), (7, 9))): Branch([1, 2, 7], [[8], [9]]),
        ((1,), ((7, 8, 9), (7, 8, 6, 5), (7, 8, 9, 4))): Branch([1, 7, 8], [[9], [6, 5], [9, 4]]),
        ((1,), ((7, 8), (7,))): Branch([1], [[7, 8], [7]]),
        ((1,), ((7, 8), (6,))): Branch([1], [[7, 8], [6]]),
    }
    questions = [EncodedQuestion(list(ids), [list(option) for option in options]) for ids, options in asked]
    command = score_command(EncodedInquiry([5], [], questions, ""), Client())
    assert command.branches == list(asked.values())


def test_an_ignored_end_is_none_and_the_least_length_fits(vocabulary: Vocabulary) -> None:
    [command] = generate_commands(GenerationOptions(ignore_eos=True, min_tokens=500), Client(), vocabulary, prompt())
    assert (command.stop_tokens, command.min_tokens, command.max_tokens) == ([], 40, 40)


@pytest.mark.parametrize("token", [-1, 448])
def test_a_token_that_is_none_is_refused_by_its_field(vocabulary: Vocabulary, token: int) -> None:
    with pytest.raises(InvalidRequest) as error:
        generate_commands(GenerationOptions(allowed_token_ids=(token,)), Client(), vocabulary, prompt())
    assert error.value.param == "allowed_token_ids"


OFF = Reasoning(enabled=False)


@pytest.mark.parametrize(
    ("markers", "reasoning", "grammar", "text", "expected"),
    [
        (None, Reasoning(budget_tokens=5), HELD, "", None),
        (MARKERS, Reasoning(), None, "", None),
        (MARKERS, Reasoning(), LAZY, "", None),
        (MARKERS, Reasoning(), HELD, "", (False, None)),
        (MARKERS, Reasoning(), HELD, "assistant\n<think>", (True, None)),
        (MARKERS, Reasoning(budget_tokens=0), None, "assistant\n<think>\n", (True, 0)),
        (MARKERS, Reasoning(), HELD, "assistant\n<think>\n\n</think>\n\n", None),
        (MARKERS, OFF, HELD, "assistant\n", None),
        (MARKERS, OFF, HELD, "assistant\n<think>\n", (True, None)),
    ],
)
def test_a_thought_matters_where_it_is_bounded_or_waited_for(
    markers: ThoughtMarkers | None,
    reasoning: Reasoning,
    grammar: Grammar | None,
    text: str,
    expected: tuple[bool, int | None] | None,
) -> None:
    made = thought_of(markers, reasoning, prompt(text), Constraint(grammar, closing=[9, 8]))
    if expected is None:
        assert made is None
    else:
        is_open, most = expected
        assert made == Thought(begin=MARKERS.begin, end=MARKERS.end, closing=[9, 8], open=is_open, max_tokens=most)
