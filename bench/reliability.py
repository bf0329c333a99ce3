"""How far the probabilities of decisions can be trusted, for one model: `python -m bench.reliability`.

Asks what has one right answer: capitals of the world, each as a statement that is true or not and as one of four, and
comparisons of numbers. Two figures for each kind: the Brier score of the probabilities, beside that of always saying
how often it is so; and how often the likeliest answer is right. The picture has how often it is so against what the
model says.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.models import MODELS, cache_folder, with_room
from bench.result import RESULTS, Curve, Figure, Points, Result, lines, write
from bench.servers import Server, running
from bench.setup import setup

_BINS = 10
# A point of fewer answers says nothing.
_FEWEST = 8
_CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Belgium": "Brussels",
    "Switzerland": "Bern", "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Serbia": "Belgrade", "Croatia": "Zagreb", "Slovenia": "Ljubljana", "Slovakia": "Bratislava",
    "Estonia": "Tallinn", "Latvia": "Riga", "Lithuania": "Vilnius", "Iceland": "Reykjavik", "Turkey": "Ankara",
    "Georgia": "Tbilisi", "Armenia": "Yerevan", "Azerbaijan": "Baku", "Iran": "Tehran", "Iraq": "Baghdad",
    "Syria": "Damascus", "Lebanon": "Beirut", "Jordan": "Amman", "Qatar": "Doha", "Oman": "Muscat",
    "Pakistan": "Islamabad", "India": "New Delhi", "Nepal": "Kathmandu", "Bangladesh": "Dhaka", "China": "Beijing",
    "Japan": "Tokyo", "South Korea": "Seoul", "Mongolia": "Ulaanbaatar", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Cambodia": "Phnom Penh", "Philippines": "Manila", "Malaysia": "Kuala Lumpur", "Australia": "Canberra",
    "New Zealand": "Wellington", "Egypt": "Cairo", "Libya": "Tripoli", "Tunisia": "Tunis", "Algeria": "Algiers",
    "Morocco": "Rabat", "Sudan": "Khartoum", "Ethiopia": "Addis Ababa", "Kenya": "Nairobi", "Uganda": "Kampala",
    "Rwanda": "Kigali", "Ghana": "Accra", "Senegal": "Dakar", "Mali": "Bamako", "Angola": "Luanda",
    "Zambia": "Lusaka", "Zimbabwe": "Harare", "Namibia": "Windhoek", "Madagascar": "Antananarivo", "Canada": "Ottawa",
    "Cuba": "Havana", "Jamaica": "Kingston", "Peru": "Lima", "Chile": "Santiago", "Argentina": "Buenos Aires",
    "Uruguay": "Montevideo", "Colombia": "Bogota",
}  # fmt: skip
_COUNTRIES = tuple(_CAPITALS)
Question = dict[str, Any]


class Asked(NamedTuple):
    """A question with the place of its right answer among the options; those of a predicate are yes and no."""

    question: Question
    right: int


class Judged(NamedTuple):
    """The probabilities of the options, and the place of the right one."""

    shares: tuple[float, ...]
    right: int


def statements(draw: random.Random) -> Iterator[Asked]:
    """Each country with its capital, and with another's."""
    for country in _COUNTRIES:
        other = draw.choice([name for name in _COUNTRIES if name != country])
        for right, city in enumerate((_CAPITALS[country], _CAPITALS[other])):
            yield Asked({"type": "predicate", "instructions": f"Is {city} the capital of {country}?"}, right)


def one_of_four(draw: random.Random) -> Iterator[Asked]:
    for country in _COUNTRIES:
        cities = [_CAPITALS[name] for name in draw.sample([n for n in _COUNTRIES if n != country], 3)]
        right = draw.randrange(4)
        cities.insert(right, _CAPITALS[country])
        choices = [{"value": city} for city in cities]
        asked = {"type": "choice", "instructions": f"What is the capital of {country}?", "choices": choices}
        yield Asked(asked, right)


def comparisons(draw: random.Random) -> Iterator[Asked]:
    for _ in range(80):
        small, large = sorted(draw.sample(range(10, 1000), 2))
        for right, (a, b) in enumerate(((large, small), (small, large))):
            yield Asked({"type": "predicate", "instructions": f"Is {a} larger than {b}?"}, right)


KINDS = {"capitals, yes or no": statements, "capitals, one of four": one_of_four, "numbers, yes or no": comparisons}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability")
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        model = with_room(MODELS[args.model](cache_folder()), Path(name) / "model", 0)
        with running("configi", model, Path(name), cache={"disk_limit": 0}) as server:
            judged = {kind: _judged(server, list(make(draw))) for kind, make in KINDS.items()}
    figures = [figure for kind, answers in judged.items() for figure in figures_of(kind, answers)]
    sides = {"as it should be": ((0.0, 0.0), (1.0, 1.0)), **{kind: reliability(all) for kind, all in judged.items()}}
    curve = Curve(
        "reliability", "SmolLM2-135M: what it says and what is so", "probability that it says", "is so", sides
    )
    result = Result(
        "reliability", "Trust in decisions of SmolLM2-135M", "the base rate", setup(), tuple(figures), curves=(curve,)
    )
    write(result, args.output)
    print("\n".join(lines(result)))


def figures_of(kind: str, judged: Sequence[Judged]) -> list[Figure]:
    options = len(judged[0].shares)
    base = 1 / options
    right = sum(answer.shares.index(max(answer.shares)) == answer.right for answer in judged) / len(judged)
    return [
        Figure(f"{kind}, {len(judged)} questions: Brier score", "", base * (1 - base), brier(judged)),
        Figure(f"{kind}: likeliest answer is right", "", base, right),
    ]


def brier(judged: Sequence[Judged]) -> float:
    """The mean squared distance of the options' probabilities from what is so, 0 or 1."""
    pairs = [pair for answer in judged for pair in _events(answer)]
    return sum((share - so) ** 2 for share, so in pairs) / len(pairs)


def reliability(judged: Sequence[Judged]) -> Points:
    """How often an option is the right one, against its probability, by tenths."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for answer in judged:
        for share, so in _events(answer):
            bins[min(int(share * _BINS), _BINS - 1)].append((share, so))
    full = [pairs for pairs in bins if len(pairs) >= _FEWEST]
    return tuple((sum(p for p, _ in pairs) / len(pairs), sum(so for _, so in pairs) / len(pairs)) for pairs in full)


def _events(answer: Judged) -> Iterator[tuple[float, bool]]:
    # Of yes and no, the second says nothing that the first does not.
    shares = answer.shares[:1] if len(answer.shares) == 2 else answer.shares
    return ((share, place == answer.right) for place, share in enumerate(shares))


def _judged(server: Server, asked: Sequence[Asked]) -> list[Judged]:
    body = {"input": "A quiz.", "questions": [question for question, _ in asked]}
    request = urllib.request.Request(
        f"{server.url}/v1/decisions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=3600) as response:
        answers = json.loads(response.read())["answers"]
    return [Judged(_shares(answer), right) for answer, (_, right) in zip(answers, asked, strict=True)]


def _shares(answer: Any) -> tuple[float, ...]:
    if answer["type"] == "predicate":
        return answer["probability"], 1 - answer["probability"]
    return tuple(option["probability"] for option in answer["probabilities"])


if __name__ == "__main__":
    main()
