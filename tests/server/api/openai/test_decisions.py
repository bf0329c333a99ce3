"""POST /v1/decisions with the OpenAI SDK, on a real socket; the service behind it is scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from server.chat.parts import Message, TextPart, ToolCallPart, ToolResultPart
from server.settings.types import LimitSettings, Settings
from tests.support.scripted_service import MODEL, Running, ScriptedService, running

PREDICATE: Any = {"type": "predicate", "instructions": "The customer is angry.", "name": "angry"}
CHOICE: Any = {
    "type": "choice",
    "instructions": "Which team?",
    "choices": [{"value": "billing"}, {"value": "technical", "description": "errors and outages"}, {"value": True}],
}
SCORE: Any = {
    "type": "score",
    "instructions": "How urgent is it?",
    "levels": [{"label": "not at all"}, {"label": "somewhat"}, {"label": "very", "description": "today"}],
}


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running(ScriptedService(Settings()), guarded=True) as server:
        yield server


@pytest.fixture
def client(up: Running) -> Iterator[OpenAI]:
    up.service.decisions.clear()
    with OpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk


def post(up: Running, **fields: Any) -> Any:
    return up.send("POST", "/v1/decisions", {"input": "I was charged twice!", "questions": [PREDICATE], **fields})


def test_each_type_of_question_has_its_answer(client: OpenAI) -> None:
    made = client.decisions.create(model=MODEL, input="I was charged twice!", questions=[PREDICATE, CHOICE, SCORE])
    angry, team, urgent = made.answers
    assert made.model == MODEL
    assert angry.type == "predicate" and angry.name == "angry"
    assert angry.probability == pytest.approx(2 / 3)
    assert team.type == "choice" and team.name is None
    assert team.choice == "billing" and team.confidence == pytest.approx(4 / 7)
    assert [(p.value, p.probability) for p in team.probabilities] == [
        ("billing", pytest.approx(4 / 7)),
        ("technical", pytest.approx(2 / 7)),
        (True, pytest.approx(1 / 7)),
    ]
    assert urgent.type == "score"
    assert urgent.score == pytest.approx(2 / 7 + 2 * 1 / 7) and urgent.confidence == pytest.approx(4 / 7)
    assert [(p.value, p.label) for p in urgent.probabilities] == [(0, "not at all"), (1, "somewhat"), (2, "very")]


def test_usage_counts_what_was_read_and_nothing_that_was_written(client: OpenAI) -> None:
    usage = client.decisions.create(model=MODEL, input="x", questions=[PREDICATE]).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (50, 0, 50)
    assert usage.input_tokens_details.cached_tokens == 40
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_the_asynchronous_client_gets_the_same(up: Running) -> None:
    async def ask() -> float:
        async with AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0, timeout=20) as sdk:
            made = await sdk.decisions.create(model=MODEL, input="x", questions=[PREDICATE])
            assert made.answers[0].type == "predicate"
            return made.answers[0].probability

    assert asyncio.run(ask()) == pytest.approx(2 / 3)


def test_a_question_tells_the_model_its_options(up: Running, client: OpenAI) -> None:
    client.decisions.create(model=MODEL, input="x", questions=[PREDICATE, CHOICE, SCORE])
    angry, team, urgent = up.service.decisions[0].inquiry.questions
    assert angry.options == ("Yes", "No") and angry.text == "The customer is angry."
    assert team.options == ("billing", "technical", "true")
    assert team.text == "Which team?\nOptions:\n- billing\n- technical: errors and outages\n- true"
    assert urgent.options == ("not at all", "somewhat", "very")
    assert urgent.text.endswith("from the lowest to the highest:\n- not at all\n- somewhat\n- very: today")


def test_a_string_and_a_boolean_that_read_the_same_stay_apart(up: Running, client: OpenAI) -> None:
    both: Any = {"type": "choice", "instructions": "Is it?", "choices": [{"value": "true"}, {"value": True}]}
    made = client.decisions.create(model=MODEL, input="x", questions=[both])
    assert up.service.decisions[0].inquiry.questions[0].options == ('"true"', "true")
    assert made.answers[0].type == "choice"
    assert [p.value for p in made.answers[0].probabilities] == ["true", True]


def test_messages_calls_and_json_are_read_as_they_were_said(up: Running, client: OpenAI) -> None:
    client.decisions.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": "Refunds take a week."},
            {"role": "user", "content": [{"type": "input_json", "data": {"order": 7}}]},
            {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"order": 7}'},
            {"type": "function_call_output", "call_id": "c1", "output": "paid twice"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "You paid twice."}]},
        ],
        questions=[{"type": "predicate", "instructions": [{"type": "input_text", "text": "Is it so?"}]}],
    )
    assert up.service.decisions[0].inquiry.messages == (
        Message.plain("system", "Refunds take a week."),
        Message.plain("user", '{"order":7}'),
        Message("assistant", (ToolCallPart("c1", "look_up", '{"order": 7}'),)),
        Message("tool", (ToolResultPart("c1", "paid twice", "look_up"),)),
        Message("assistant", (TextPart("You paid twice."),)),
    )
    assert up.service.decisions[0].inquiry.questions[0].text == "Is it so?"


def test_what_the_sdk_can_send_besides_is_taken(client: OpenAI) -> None:
    text: Any = {"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
    made = client.decisions.with_raw_response.create(
        model="",
        input=[{"role": "user", "content": [text]}],
        questions=[PREDICATE],
        prompt_cache_key="k",
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
        safety_identifier="me",
    )
    assert "x-configi-ignored" not in made.headers


def test_what_is_not_known_is_named(up: Running) -> None:
    answer = post(up, colour="red", questions=[{**PREDICATE, "weight": 2}])
    assert answer.status == 200
    assert answer.headers["x-configi-ignored"] == "colour, questions.weight"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{"type": "guess", "instructions": "x"}]}, "questions.0.type"),
        ({"questions": ["x"]}, "questions.0"),
        ({"questions": [{"type": "predicate"}]}, "questions.0.instructions"),
        ({"questions": [{"type": "predicate", "instructions": "  "}]}, "questions.0.instructions"),
        ({"questions": [PREDICATE, {**CHOICE, "choices": [{"value": "a"}]}]}, "questions.1.choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": str(i)} for i in range(256)]}]}, "questions.0.choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}, {"value": "a"}]}]}, "questions.0.choices.1"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}, {"value": 3}]}]}, "questions.0.choices.1.value"),
        ({"questions": [{**SCORE, "levels": [{"label": "a"}]}]}, "questions.0.levels"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0.type"),
        ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]}, "input.0.call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_json", "data": [1]}]}]}, "input.0.content.0.data"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"stream": True}, "stream"),
        ({"temperature": 0.2}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)  # fmt: skip
def test_bad_requests_are_400_with_the_place(up: Running, fields: dict[str, Any], param: str) -> None:
    answer = post(up, **fields)
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"].startswith(error["param"]), error


def test_images_are_left_out_where_the_settings_say_so() -> None:
    service = ScriptedService(Settings(limits=LimitSettings(images="omit")))
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    with running(service) as server:
        asked = {**PREDICATE, "instructions": [image, {"type": "input_text", "text": "Is it red?"}]}
        assert post(server, input=[{"role": "user", "content": [image]}], questions=[asked]).status == 200
    inquiry = service.decisions[0].inquiry
    assert inquiry.messages[0].text == "[image omitted]"
    assert inquiry.questions[0].text == "[image omitted]Is it red?"


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.decisions.create(model="nobody", input="x", questions=[PREDICATE])
    assert caught.value.code == "model_not_found"


def test_what_the_model_refuses_is_the_answer(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="The template says no") as caught:
        client.decisions.create(model=MODEL, input="fail early", questions=[PREDICATE])
    assert caught.value.param == "input"


def test_a_client_that_leaves_cancels_its_questions(up: Running) -> None:
    with running(up.service) as server:
        up.service.begun.clear()
        with server.open("/v1/decisions", {"input": "hang", "questions": [PREDICATE]}):
            assert up.service.begun.wait(10)
        assert up.service.idle.wait(10)


def test_the_answer_is_made_of_what_the_sdk_knows_and_no_more(up: Running) -> None:
    body = post(up, questions=[PREDICATE, CHOICE, SCORE]).json()
    assert list(body) == ["model", "answers", "usage"]
    assert json.dumps(body["answers"][0]) == json.dumps(
        {"type": "predicate", "name": "angry", "probability": body["answers"][0]["probability"]}
    )


def test_how_long_the_model_stays_is_taken_and_what_was_cached_is_told(up: Running) -> None:
    answer = post(up, keep_alive="5m")
    assert up.service.decisions[-1].keep_alive_s == 300
    assert answer.headers["x-configi-cached-tokens"] == str(
        answer.json()["usage"]["input_tokens_details"]["cached_tokens"]
    )


def test_a_long_input_is_read_beside_the_event_loop_and_is_the_same(up: Running) -> None:
    up.service.decisions.clear()
    given = "The sea is blue. " * 10_000
    answer = post(up, input=given, questions=[{**CHOICE, "name": str(number)} for number in range(400)])
    assert answer.status == 200
    assert [answer["name"] for answer in answer.json()["answers"]] == [str(number) for number in range(400)]
    assert up.service.decisions[0].inquiry.messages[0].text == given
