"""What the simulated Macs are asked, and what is read off them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from statistics import median

from bench.result import Row, Target
from bench.simulated.chips import GB, Chip
from bench.simulated.clients import Ask, Client, Leave, Pause
from bench.simulated.device import VOCABULARY, Device
from bench.simulated.machine import STALL_TARGET_S, machine
from server.engine_client.protocol import Boundary, Kind

LONG = 4000
# Opens a reply, and closes a message.
_OPENING, _CLOSING = 4, 2

Values = dict[str, float]


class Conversation:
    """One that grows; the template opens a reply as history writes it."""

    def __init__(self, number: int, system: int, task: int = 0) -> None:
        self._draw = random.Random(number)
        self._tokens: list[int] = []
        self._boundaries: list[Boundary] = []
        self._client = str(number)
        self._add(self._text(system), "system")
        # What follows is another one's than that of other tasks with the same system prompt.
        self._draw = random.Random(f"{number} {task}")

    def ask(self, user: int, max_tokens: int) -> Ask:
        """With a message of `user` tokens behind all that was said."""
        self._add(self._text(user), "user")
        self._tokens += [1] * _OPENING
        return Ask(list(self._tokens), max_tokens, list(self._boundaries), self._client)

    def answered(self, asked: Ask) -> None:
        self._add(asked.tokens + [1] * _CLOSING, "assistant")

    def _text(self, tokens: int) -> list[int]:
        return [self._draw.randrange(2, VOCABULARY) for _ in range(tokens)]

    def _add(self, tokens: list[int], kind: Kind) -> None:
        self._tokens += tokens
        self._boundaries.append(Boundary(len(self._tokens), kind))


def _turns(conversation: Conversation, sizes: Iterator[int], answer: int, pause: float, asked: list[Ask]) -> Client:
    for user in sizes:
        asked.append(conversation.ask(user, answer))
        yield asked[-1]
        conversation.answered(asked[-1])
        yield Pause(pause)


def _chat(asked: list[Ask], number: int = 0, turns: int = 6) -> Client:
    """Short questions, answers of a paragraph, and a reader."""
    return _turns(Conversation(number, system=200), itertools.repeat(30, turns), 120, 20.0, asked)


def chat(chip: Chip) -> Values:
    asked: list[Ask] = []
    with machine(chip) as mac:
        mac.serve([_chat(asked)])
        mac.shut_down()
        return {
            "chat_cold": asked[0].ttft,
            "chat_next": median(each.ttft for each in asked[1:]),
            "chat_sweeps": median(_sweeps(mac.device, each) for each in asked[1:]),
            **_bytes("chat", mac.device, len(asked)),
        }


def agent(chip: Chip) -> Values:
    """A large system prompt with tools, then calls and their results."""
    asked: list[Ask] = []
    with machine(chip) as mac:
        mac.serve([_steps(1, asked)])
        mac.shut_down()
        return {
            "agent_cold": asked[0].ttft,
            "agent_next": median(each.ttft for each in asked[1:]),
            "agent_sweeps": median(_sweeps(mac.device, each) for each in asked[1:]),
            **_bytes("agent", mac.device, len(asked)),
        }


def agent_again(chip: Chip) -> Values:
    """And then another task for the same agent."""
    asked: list[Ask] = []
    with machine(chip) as mac:
        mac.serve([_steps(1, asked)])
        mac.serve([_steps(2, asked)])
        mac.shut_down()
        return {"agent_average": mac.device.written / len(asked) / GB}


def _steps(task: int, asked: list[Ask]) -> Client:
    steps = Conversation(1, system=6000, task=task)
    return _turns(steps, itertools.chain([200], itertools.repeat(400, 9)), 60, 3.0, asked)


def long_alone(chip: Chip) -> Values:
    """A long prompt behind a chat, whose short ends the engine has measured."""
    long: list[Ask] = []
    with machine(chip) as mac:
        mac.serve([_chat([])])
        mac.serve([_long(long)])
        return {
            "alone": long[0].ttft,
            "alone_ratio": long[0].ttft / chip.ideal_ttft_s(LONG),
            "alone_sweeps": _sweeps(mac.device, long[0]),
        }


def long_beside_stream(chip: Chip) -> Values:
    stream = Ask(list(range(2, 100)), 100_000, client="stream", wait=False)
    long: list[Ask] = []

    def both() -> Client:
        yield stream
        yield Pause(3.0)
        yield from _long(long)
        yield Leave(stream)

    with machine(chip) as mac:
        mac.serve([_chat([])])
        mac.serve([both()])
        times = [at for at in stream.times if at <= long[0].sent][-1:]
        times += [at for at in stream.times if at > long[0].sent]
        return {
            "beside": long[0].ttft,
            "beside_ratio": long[0].ttft / chip.ideal_ttft_s(LONG),
            "beside_gap": max(later - earlier for earlier, later in itertools.pairwise(times)),
        }


def eight_clients(chip: Chip) -> Values:
    """Eight conversations that begin within half a second, of two turns each."""
    asked: list[Ask] = []

    def client(number: int) -> Client:
        yield Pause(0.06 * number)
        conversation = Conversation(100 + number, system=500)
        yield from _turns(conversation, itertools.repeat(60, 2), 150, 5.0, asked)

    with machine(chip) as mac:
        mac.serve([client(number) for number in range(8)])
    ends = max(each.times[-1] for each in asked) - min(each.sent for each in asked)
    return {
        "eight_median": median(each.ttft for each in asked),
        "eight_worst": max(each.ttft for each in asked),
        "eight_gap": max(each.longest_gap for each in asked),
        "eight_rate": sum(len(each.tokens) for each in asked) / ends,
    }


def _long(asked: list[Ask]) -> Client:
    asked.append(Conversation(99, system=50).ask(LONG - 50 - _OPENING, 4))
    yield asked[-1]


def _sweeps(device: Device, asked: Ask) -> int:
    """Passes that the device began before the first token: alone, all of them were for it."""
    return sum(asked.sent <= each.start < asked.times[0] - 1e-9 for each in device.passes)


def _bytes(name: str, device: Device, turns: int) -> Values:
    return {f"{name}_written": device.written / turns / GB, f"{name}_copied": device.copied / turns / GB}


SCENARIOS: tuple[Callable[[Chip], Values], ...] = (
    chat,
    agent,
    agent_again,
    long_alone,
    long_beside_stream,
    eight_clients,
)

ROWS = (
    Row("chat_cold", "chat: time to first token, cold", "s"),
    Row("chat_next", "chat: the same, next turn of 30 tokens", "s"),
    Row("chat_sweeps", "chat: weight sweeps for it, with the first decode step", "", Target(2, absolute=True)),
    Row("chat_written", "chat: to the disk, a turn", "GB", Target(0.05, absolute=True)),
    Row("chat_copied", "chat: keys and values copied, a turn", "GB"),
    Row("agent_cold", "agent: time to first token, 6,200 tokens", "s"),
    Row("agent_next", "agent: the same, a result of 400 tokens", "s"),
    Row("agent_sweeps", "agent: weight sweeps for it", ""),
    Row("agent_written", "agent: to the disk, a turn of its first session", "GB"),
    Row("agent_average", "agent: the same, two sessions on average", "GB", Target(0.05, absolute=True)),
    Row("agent_copied", "agent: keys and values copied, a turn", "GB"),
    Row("alone", "4,000 tokens alone: time to first token", "s"),
    Row("alone_ratio", "the same by that of chunks of 2,048", "", Target(1.02, absolute=True)),
    Row("alone_sweeps", "weight sweeps for it", ""),
    Row("beside", "4,000 tokens beside a stream: time to first token", "s"),
    Row("beside_ratio", "the same by that of chunks of 2,048, alone", "", Target(1.35, absolute=True)),
    Row("beside_gap", "longest gap in the stream", "s", Target(STALL_TARGET_S, absolute=True)),
    Row("eight_median", "eight clients: time to first token, median", "s"),
    Row("eight_worst", "eight clients: the same, worst", "s"),
    Row("eight_gap", "eight clients: longest gap", "s"),
    Row("eight_rate", "eight clients: all together", "tok/s"),
)
