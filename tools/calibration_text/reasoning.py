"""Short problems with their reasoning and answer; every number is computed, so every step is true."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_NAMES = ["Ada", "Bilal", "Carmen", "Dov", "Esi", "Farid", "Greta", "Hugo", "Ines", "Jun", "Kaja", "Leo"]
_GOODS = ["pears", "tiles", "tickets", "batteries", "notebooks", "bulbs", "mugs", "ropes"]


def problems(seed: int = 16, each: int = 9) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    made = [kind(rng) for _ in range(each) for kind in _KINDS]
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "reasoning_content": thought, "content": answer},
            ]
        }
        for question, thought, answer in made
    ]


Problem = tuple[str, str, str]


def _equation(rng: random.Random) -> Problem:
    x, a, b = rng.randint(-15, 30), rng.randint(2, 14), rng.randint(-40, 60)
    total = a * x + b
    sign = f"+ {b}" if b >= 0 else f"- {-b}"
    question = rng.choice(["Solve {} for x.", "What is x if {}?", "Find x: {}"]).format(f"{a}x {sign} = {total}")
    thought = f"Move {b} over: {a}x = {total} - ({b}) = {total - b}. Divide by {a}: x = {x}. Check: {a}·{x} {sign} = {a * x + b}. Fits."
    return question, thought, f"x = {x}"


def _discount(rng: random.Random) -> Problem:
    price, off, tax, name = (
        rng.randint(20, 400),
        rng.choice([5, 10, 15, 20, 30, 40]),
        rng.choice([4, 7, 19, 21]),
        rng.choice(_NAMES),
    )
    reduced = Fraction(price * (100 - off), 100)
    final = reduced * Fraction(100 + tax, 100)
    question = f"{name} buys {rng.choice(_GOODS)} for {price} before a discount of {off} %, then {tax} % tax is added. What is paid?"
    thought = (
        f"The discount takes {off} % of {price}, which is {float(Fraction(price * off, 100)):.2f}, leaving {float(reduced):.2f}. "
        f"Tax is on what is left: {float(reduced):.2f} × {1 + tax / 100:.2f} = {float(final):.2f}. The order matters little here, as both are factors."
    )
    return question, thought, f"{name} pays {float(final):.2f}."


def _meeting(rng: random.Random) -> Problem:
    first, second, hours = rng.randint(40, 110), rng.randint(45, 130), rng.randint(2, 6)
    apart, start = (first + second) * hours, rng.randint(5, 12)
    question = f"Two trains are {apart} km apart and set out toward each other at {start}:00, at {first} and {second} km/h. When do they meet?"
    thought = f"They close in at {first} + {second} = {first + second} km/h. {apart} / {first + second} = {hours} hours. {start}:00 plus {hours} h is {start + hours}:00."
    return question, thought, f"They meet at {start + hours}:00, {first * hours} km from where the first one started."


def _euclid(rng: random.Random) -> Problem:
    factor = rng.randint(3, 40)
    a, b = factor * rng.randint(11, 60), factor * rng.randint(5, 40)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y} × {y} + {x % y}")
        x, y = y, x % y
    question = rng.choice([f"gcd({a}, {b})?", f"What is the largest number that divides both {a} and {b}?"])
    return question, "By Euclid: " + "; ".join(steps) + f". The last remainder that is not zero: {x}.", str(x)


def _binary(rng: random.Random) -> Problem:
    number = rng.randint(33, 1000)
    steps, left = [], number
    while left:
        steps.append(f"{left} / 2 = {left // 2} remainder {left % 2}")
        left //= 2
    question = rng.choice([f"Write {number} in binary.", f"Convert decimal {number} to base 2 and to hexadecimal."])
    thought = (
        ", ".join(steps)
        + f". Read the remainders upward: {number:b}. In fours from the right that is {number:X} in hexadecimal."
    )
    return question, thought, f"{number} is {number:b} in binary ({number:X} in hexadecimal)."


def _weekday(rng: random.Random) -> Problem:
    day = datetime.date(rng.randint(2001, 2035), rng.randint(1, 12), rng.randint(1, 28))
    ahead = rng.randint(20, 400)
    then = day + datetime.timedelta(days=ahead)
    question = f"{day:%B} {day.day}, {day.year} is a {day:%A}. Which weekday is it {ahead} days later?"
    thought = f"{ahead} = {ahead // 7} × 7 + {ahead % 7}, so only {ahead % 7} days count. {day:%A} plus {ahead % 7} gives {then:%A}. The date itself would be {then:%Y-%m-%d}."
    return question, thought, f"A {then:%A}."


def _urn(rng: random.Random) -> Problem:
    red, blue = rng.randint(2, 9), rng.randint(2, 9)
    total = red + blue
    both = Fraction(red, total) * Fraction(red - 1, total - 1)
    question = f"An urn holds {red} red and {blue} blue balls. {rng.choice(_NAMES)} draws two without looking and keeps both. How likely are two red ones?"
    thought = f"First red: {red}/{total}. Then {red - 1} of {total - 1} are red. Product: {red}/{total} × {red - 1}/{total - 1} = {both}, roughly {float(both):.3f}."
    return question, thought, f"{both}, about {100 * float(both):.1f} %."


def _trace(rng: random.Random) -> Problem:
    start, add, times = rng.randint(1, 9), rng.randint(2, 7), rng.randint(3, 6)
    code = f"total = {start}\nfor i in range({times}):\n    total = total * 2 - i * {add}\nprint(total)"
    value, steps = start, []
    for i in range(times):
        value = value * 2 - i * add
        steps.append(f"i={i}: total={value}")
    return (
        f"What does this print?\n\n```python\n{code}\n```",
        f"Start with {start}. " + ", ".join(steps) + ".",
        f"It prints {value}.",
    )


def _triangle(rng: random.Random) -> Problem:
    m, n, k = rng.randint(3, 7), rng.randint(1, 2), rng.randint(1, 4)
    a, b, c = k * (m * m - n * n), 2 * k * m * n, k * (m * m + n * n)
    question = f"A ladder leans on a wall: its foot is {a} cm away and it touches at a height of {b} cm. How long is it, and what is the area below it?"
    thought = f"A right angle at the wall's foot: {a}² + {b}² = {a * a} + {b * b} = {a * a + b * b}, and √{a * a + b * b} = {c}. Area: {a} × {b} / 2 = {a * b // 2}."
    return question, thought, f"The ladder is {c} cm long; the area is {Fraction(a * b, 2)} cm²."


def _order(rng: random.Random) -> Problem:
    four = rng.sample(_NAMES, 4)
    clues = [
        f"{four[0]} is older than {four[1]}",
        f"{four[2]} is younger than {four[3]}",
        f"{four[3]} is younger than {four[1]}",
    ]
    rng.shuffle(clues)
    question = "; ".join(clues) + f". Who is the youngest of {', '.join(sorted(four))}?"
    thought = f"From oldest down: {four[0]} > {four[1]}, then {four[1]} > {four[3]}, and {four[3]} > {four[2]}. One chain holds all four: {' > '.join((four[0], four[1], four[3], four[2]))}."
    return question, thought, f"{four[2]} is the youngest."


def _mixture(rng: random.Random) -> Problem:
    strong, weak = rng.randint(50, 90), rng.randint(5, 30)
    first, second = rng.randint(2, 20), rng.randint(2, 20)
    acid = Fraction(strong * first + weak * second, 100)
    share = 100 * acid / (first + second)
    question = f"{first} litres of a {strong} % solution are poured into {second} litres of one with {weak} %. How strong is the mixture?"
    thought = f"Pure substance: {first} × {strong / 100:.2f} + {second} × {weak / 100:.2f} = {float(acid):.2f} l in {first + second} l. {float(acid):.2f} / {first + second} = {float(share) / 100:.4f}."
    return question, thought, f"About {float(share):.1f} %."


def _primes(rng: random.Random) -> Problem:
    number = rng.randint(200, 4000)
    left, divisor, found = number, 2, []
    while divisor * divisor <= left:
        while left % divisor == 0:
            found.append(divisor)
            left //= divisor
        divisor += 1
    found += [left] if left > 1 else []
    tried = ", ".join(str(p) for p in (2, 3, 5, 7, 11, 13) if number % p)
    question = rng.choice([f"Is {number} prime?", f"Factor {number} into primes."])
    thought = f"√{number} is about {math.isqrt(number)}. Not divisible by {tried}. Dividing out: {number} = {' × '.join(map(str, found))}."
    answer = (
        f"{number} is prime." if len(found) == 1 else f"{number} = {' × '.join(map(str, found))}, so it is not prime."
    )
    return question, thought, answer


_KINDS: list[Callable[[random.Random], Problem]] = [
    _equation, _discount, _meeting, _euclid, _binary, _weekday, _urn, _trace, _triangle, _order, _mixture, _primes,
]  # fmt: skip
