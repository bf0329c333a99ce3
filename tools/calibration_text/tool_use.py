"""Conversations with tools: each tool is declared in one conversation only, and called there several times.

The material is written by hand for this project; numbers and names are drawn from a seeded generator.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_POOLS: dict[str, Sequence[str]] = {
    "city": "Lisbon Osaka Nairobi Quito Tromsø Adelaide Kraków Montréal Hanoi Accra Tbilisi Cork Valparaíso Izmir".split(),
    "person": "Amara Jonas Mei Ravi Lucía Tomasz Ingrid Yusuf Chloé Kwame Noa Petra Dmitri Hana".split(),
    "sky": ["clear", "overcast", "light rain", "fog until noon", "scattered showers", "snow above 600 m"],
    "file": ["src/parser.py", "app/models/user.rb", "lib/cache.go", "web/index.ts", "core/mesh.cpp", "docs/intro.md"],
    "symbol": ["parse_header", "UserSession", "evict_oldest", "renderTable", "merge_meshes", "retry_after"],
    "item": ["desk lamp", "rain jacket", "coffee grinder", "USB hub", "garden hose", "chess set", "wool blanket"],
    "topic": [
        "tidal energy",
        "bread fermentation",
        "Roman roads",
        "owl migration",
        "bridge bearings",
        "coral bleaching",
    ],
    "weekday": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"],
    "dish": ["lentil soup", "saffron rice", "mushroom risotto", "fish tacos", "beet salad", "okonomiyaki"],
    "status": ["in transit", "waiting at customs", "out for delivery", "held at the depot", "delivered"],
    "language": ["Portuguese", "Finnish", "Vietnamese", "Swahili", "Greek", "Turkish"],
    "room": ["Cedar", "Harbour", "Attic", "Observatory", "Library", "Greenhouse"],
    "plant": ["basil", "monstera", "lemon tree", "orchid", "tomato", "lavender"],
}


@dataclass(frozen=True, slots=True)
class _Tool:
    """Templates hold {pool} and {name:low-high}; a name means the same value throughout one call."""

    name: str
    about: str
    parameters: Mapping[str, str]
    arguments: Mapping[str, Any]
    result: Mapping[str, Any]
    asks: Sequence[str]
    answers: Sequence[str]
    system: str = ""
    closing: Sequence[str] = field(default_factory=tuple)


def conversations(seed: int = 16) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [_conversation(tool, rng) for tool in _TOOLS]


def _conversation(tool: _Tool, rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": tool.system}] if tool.system else []
    for turn, (ask, answer) in enumerate(zip(tool.asks, tool.answers, strict=True)):
        values = _Values(rng)
        call = {"name": tool.name, "arguments": values.fill(tool.arguments)}
        messages += [
            {"role": "user", "content": values.fill(ask)},
            {"role": "assistant", "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": f"call_{turn}", "name": tool.name, "content": values.fill(tool.result)},
            {"role": "assistant", "content": values.fill(answer)},
        ]
    for place, text in enumerate(tool.closing):
        messages.append({"role": ("user", "assistant")[place % 2], "content": text})
    return {"messages": messages, "tools": [_declared(tool)]}


def _declared(tool: _Tool) -> dict[str, Any]:
    properties = {}
    for name, text in tool.parameters.items():
        kind, description = text.split(": ", 1)
        properties[name] = {"type": kind, "description": description}
    schema = {"type": "object", "properties": properties, "required": list(tool.arguments)}
    return {"type": "function", "function": {"name": tool.name, "description": tool.about, "parameters": schema}}


class _Values:
    """The values of one call: the first mention of a name draws it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._drawn: dict[str, str] = {}

    def fill(self, template: Any) -> Any:
        if isinstance(template, Mapping):
            return {key: self.fill(value) for key, value in template.items()}
        if isinstance(template, list):
            return [self.fill(value) for value in template]
        if not isinstance(template, str):
            return template
        filled = re.sub(r"\{(\w+)(?::(\d+)-(\d+))?\}", self._value, template)
        return int(filled) if filled.isdigit() and template.startswith("{") else filled

    def _value(self, match: re.Match[str]) -> str:
        name, low, high = match.groups()
        if name not in self._drawn:
            pool = _POOLS.get(name.rstrip("0123456789"))
            self._drawn[name] = str(self._rng.randint(int(low), int(high))) if low else self._rng.choice(pool or [name])
        return self._drawn[name]


_TOOLS = [
    _Tool(
        "get_forecast",
        "Weather for the coming days at one place.",
        {"city": "string: City name as people write it", "days": "integer: Days ahead, 1 to 10"},
        {"city": "{city}", "days": "{days:2-9}"},
        {"place": "{city}", "high_c": "{high:12-36}", "low_c": "{low:1-11}", "sky": "{sky}", "wind_kmh": "{wind:4-60}"},
        [
            "I land in {city} tomorrow and stay {days:2-9} days. Do I need a coat?",
            "My sister goes to {city} for {days:2-9} days instead. Same question for her.",
            "Compare that with {city}, {days:2-9} days, please; just the numbers.",
        ],
        [
            "Expect {sky} in {city}, between {low} °C at night and {high} °C by day. A light coat for the evenings is enough.",
            "For her: {high} °C at most, {low} °C at least, {sky}, and wind around {wind} km/h. I would pack something windproof.",
            "{city}: high {high} °C, low {low} °C, wind {wind} km/h, {sky}.",
        ],
    ),
    _Tool(
        "search_flights",
        "Find one-way flights between two airports on a date. Prices include taxes.",
        {
            "origin": "string: IATA code",
            "destination": "string: IATA code",
            "date": "string: ISO date",
            "max_stops": "integer: 0 to 2",
        },
        {"origin": "LIS", "destination": "OSL", "date": "2026-0{month:4-9}-1{day:0-9}"},
        {
            "offers": [
                {"carrier": "Blue Fjord", "price": "{price:89-420}", "minutes": "{minutes:190-540}", "stops": 0},
                {"carrier": "Aeromar", "price": "{cheap:60-88}", "minutes": "{long:560-900}", "stops": 2},
            ]
        },
        [
            "Cheapest way from Lisbon to Oslo on 2026-0{month:4-9}-1{day:0-9}?",
            "What if I leave on 2026-0{month:4-9}-1{day:0-9}?",
        ],
        [
            "The cheapest is Aeromar at {cheap} euros, but with two stops it takes {long} minutes. Blue Fjord flies direct in {minutes} minutes for {price} euros.",
            "On that day the direct flight is {price} euros ({minutes} minutes); with two stops you pay {cheap} euros and lose most of the day.",
        ],
        closing=[
            "The direct one then.",
            "Good choice. I can only search, so please book it on the carrier's own site; fares of this kind tend to change within hours.",
        ],
    ),
    _Tool(
        "read_file",
        "Return a range of lines of a text file in the workspace.",
        {
            "path": "string: Path relative to the workspace root",
            "start": "integer: First line, from 1",
            "end": "integer: Last line, inclusive",
        },
        {"path": "{file}", "start": "{start:1-90}", "end": "{end:91-180}"},
        {
            "path": "{file}",
            "total_lines": "{total:181-900}",
            "text": "def {symbol}(value, limit={limit:2-64}):\n    if value is None:\n        return limit\n    return min(value, limit)\n",
        },
        [
            "Look at {file} around line {start:1-90} and tell me what {symbol} does.",
            "Does {symbol} in {file} handle a missing value?",
        ],
        [
            "`{symbol}` clamps: it returns `value`, but never more than `limit`, which defaults to {limit}. With `None` it returns the limit itself.",
            "Yes. When `value` is `None`, the function answers with the limit ({limit} by default) instead of raising. A zero passes through untouched, since only `None` is tested.",
        ],
        system="You are a coding agent in a terminal. Read before you answer, change as little as needed, and name the lines you rely on.",
    ),
    _Tool(
        "run_command",
        "Run a shell command in the project's sandbox and return its exit code and output.",
        {"command": "string: The command line", "timeout_s": "integer: Seconds before it is stopped"},
        {"command": "pytest -q {file}", "timeout_s": "{timeout:20-300}"},
        {
            "exit_code": 1,
            "stdout": "{passed:3-80} passed, {failed:1-4} failed in {seconds:1-50}s\nFAILED {file}::{symbol} - AssertionError: expected {want:10-99}, got {got:100-999}",
        },
        ["Run the tests for {file}.", "Try again, I changed {symbol} in {file}."],
        [
            "{failed} of the tests fail and {passed} pass. The one to look at is `{symbol}`: it expects {want} and receives {got}, as if a unit conversion were missing.",
            "Still red: {failed} failing, {passed} passing after {seconds} s. `{symbol}` now gives {got} where {want} is wanted. Shall I open the function?",
        ],
        closing=[
            "Yes, but do not edit anything yet.",
            "Understood. I will read it first and propose a patch as a diff, so that you can decide.",
        ],
    ),
    _Tool(
        "track_parcel",
        "Where a parcel is, by its tracking number.",
        {"number": "string: Ten digits", "carrier": "string: Optional carrier code"},
        {"number": "48{number:10000000-99999999}"},
        {"state": "{status}", "last_seen": "{city}", "eta_days": "{eta:1-8}", "weight_g": "{weight:120-9000}"},
        [
            "where's 48{number:10000000-99999999}",
            "And the other one, 48{number:10000000-99999999}?",
            "Third and last: 48{number:10000000-99999999}",
        ],
        [
            "It is {status}; the last scan was in {city}. The carrier expects {eta} more days.",
            "That parcel ({weight} g) is {status}, seen in {city}, with an estimate of {eta} days.",
            "Number three: {status}. Last place {city}. If nothing moves within {eta} days, ask the sender to open an inquiry, since only they can.",
        ],
    ),
    _Tool(
        "query_database",
        "Run a read-only SQL query against the sales warehouse. At most 100 rows come back.",
        {"sql": "string: One SELECT statement"},
        {
            "sql": "SELECT region, SUM(total) AS revenue FROM orders WHERE year = 20{year:18-25} AND product = '{item}' GROUP BY region ORDER BY revenue DESC LIMIT {limit:2-5}"
        },
        {
            "rows": [
                {"region": "north", "revenue": "{north:5000-9999}"},
                {"region": "coast", "revenue": "{coast:1000-4999}"},
            ],
            "elapsed_ms": "{ms:3-900}",
        },
        ["Which regions bought the most of our {item} in 20{year:18-25}?", "Now the {item}, year 20{year:18-25}."],
        [
            "In 20{year} the north led with {north}, ahead of the coast with {coast}. Only those two regions sold the {item} at all.",
            "North {north}, coast {coast}. For the {item} the gap is wider than it looks, because returns are not subtracted in `orders.total`.",
        ],
        system="You answer questions about sales data. Write standard SQL, never modify anything, and state the assumptions behind a number.",
    ),
    _Tool(
        "create_event",
        "Put an event into the user's calendar.",
        {
            "title": "string: Short title",
            "day": "string: Weekday",
            "start": "string: HH:MM, 24 h",
            "minutes": "integer: Duration",
            "guests": "array: First names",
        },
        {"title": "Review with {person}", "day": "{weekday}", "start": "{hour:10-17}:30", "minutes": "{minutes:25-90}"},
        {"id": "ev_{id:1000-9999}", "conflicts": ["{person2} already has the room {room} then"]},
        [
            "Set up a review with {person} on {weekday}, {hour:10-17}:30, {minutes:25-90} minutes.",
            "Also one with {person}: {weekday} at {hour:10-17}:30 for {minutes:25-90} minutes",
        ],
        [
            "Done: {weekday}, {hour}:30, {minutes} minutes with {person}. One remark: {person2} has booked the room {room} at that time, so you need another place.",
            "It is in the calendar as ev_{id}. The room {room} is taken by {person2}; shall I look for a free one?",
        ],
    ),
    _Tool(
        "web_search",
        "Search the web. Returns titles, addresses and short extracts.",
        {"query": "string: What to look for", "count": "integer: Results wanted"},
        {"query": "{topic} recent findings", "count": "{count:2-6}"},
        {
            "results": [
                {
                    "title": "What we know about {topic}",
                    "url": "https://example.org/{id:100-999}",
                    "extract": "A survey of {studies:4-70} studies finds an effect of {effect:2-38} percent, smaller than reported in 20{year:10-19}.",
                }
            ]
        },
        ["What is new about {topic}?", "Interesting. Do the same for {topic}."],
        [
            "The first result is a survey of {studies} studies on {topic}: the effect is around {effect} percent, less than was reported in 20{year}. I found nothing that contradicts it.",
            "On {topic}, {studies} studies have been put together, with an effect near {effect} percent. Take it with care: an extract is all I have read.",
        ],
    ),
    _Tool(
        "translate_text",
        "Translate a passage, keeping names and numbers.",
        {"text": "string: The passage", "target": "string: Language", "formal": "boolean: Formal address"},
        {"text": "Dear {person}, the {item} will arrive on {weekday}.", "target": "{language}", "formal": True},
        {"translation": "[{language}] {person} / {item} / {weekday}", "confidence": "0.{confidence:70-99}"},
        [
            "Tell {person} in formal {language} that the {item} arrives on {weekday}.",
            "Same kind of note for {person} in {language}, about the {item}, {weekday}.",
        ],
        [
            "Here is the note in {language}: “[{language}] {person} / {item} / {weekday}”. The tool rates itself at 0.{confidence}.",
            "Ready for {person}. Since the confidence is 0.{confidence}, have a native speaker look at it before it goes to a customer.",
        ],
    ),
    _Tool(
        "set_thermostat",
        "Set the target temperature of a room.",
        {"room": "string: Room name", "celsius": "number: Target between 5 and 28", "until": "string: HH:MM"},
        {"room": "{room}", "celsius": "{celsius:16-24}", "until": "{hour:18-23}:00"},
        {"room": "{room}", "current": "{current:11-15}", "target": "{celsius}", "minutes_needed": "{minutes:8-95}"},
        [
            "Make the {room} room {celsius:16-24} degrees until {hour:18-23}:00",
            "{room} too, {celsius:16-24} until {hour:18-23}:00",
            "Actually, the {room} should have {celsius:16-24}, till {hour:18-23}:00.",
        ],
        [
            "The {room} room is heating from {current} to {celsius} °C and needs about {minutes} minutes.",
            "Set. {room}: {celsius} °C until {hour}:00, reached in {minutes} minutes.",
            "Changed to {celsius} °C. It is {current} °C in there now.",
        ],
        system="You control a house. Be brief. Ask before you unlock a door or switch off an alarm.",
    ),
    _Tool(
        "find_recipe",
        "Look up recipes by dish, with diet and time limits.",
        {
            "dish": "string: Name of a dish",
            "minutes": "integer: At most this long",
            "diet": "string: vegan, vegetarian or any",
        },
        {"dish": "{dish}", "minutes": "{minutes:15-80}"},
        {
            "name": "{dish} for {people:2-6}",
            "steps": [
                "Chop {onions:1-4} onions",
                "Simmer for {simmer:6-14} minutes",
                "Season with {spice:1-3} teaspoons of cumin",
            ],
            "kcal": "{kcal:220-890}",
        },
        ["I have {minutes:15-80} minutes and want {dish}.", "And {dish}? Same kitchen, {minutes:15-80} minutes."],
        [
            "{dish} for {people}: chop {onions} onions, let it all simmer for {simmer} minutes, then season with {spice} teaspoons of cumin. About {kcal} kcal a plate.",
            "That works within your {minutes} minutes. Start with {onions} onions; after {simmer} minutes on low heat add the cumin ({spice} tsp) and serve {people} people.",
        ],
    ),
    _Tool(
        "list_issues",
        "Open issues of a repository, newest first.",
        {"repository": "string: owner/name", "label": "string: Only with this label"},
        {"repository": "{person}/meshkit", "label": "bug"},
        {
            "issues": [
                {
                    "number": "{first:100-499}",
                    "title": "{symbol} crashes on an empty list",
                    "comments": "{comments:0-30}",
                },
                {"number": "{second:500-999}", "title": "{file} leaks a handle", "comments": 2},
            ]
        },
        ["What bugs are open in {person}/meshkit?", "Refresh the list for {person}/meshkit please."],
        [
            "Two: #{second}, a handle leaked by `{file}`, and #{first}, where `{symbol}` crashes on an empty list ({comments} comments). The crash looks easier to reproduce.",
            "#{first} (`{symbol}`) and #{second} (`{file}`) are open. Nobody is assigned to either.",
        ],
    ),
    _Tool(
        "measure_distance",
        "Distance and travel time between two places by a means of transport.",
        {"origin": "string: Start", "destination": "string: End", "mode": "string: foot, bicycle, car or train"},
        {"origin": "{city} station", "destination": "the {room} museum", "mode": "bicycle"},
        {"metres": "{metres:900-14000}", "minutes": "{minutes:6-70}", "climb_m": "{climb:0-240}"},
        [
            "How far is it by bicycle from {city} station to the {room} museum?",
            "We moved the meeting: {city} station to the {room} museum, still cycling.",
        ],
        [
            "{metres} metres, some {minutes} minutes, with {climb} metres of climbing on the way.",
            "Now it is {minutes} minutes for {metres} m. Mind the {climb} m of ascent with luggage.",
        ],
    ),
    _Tool(
        "plot_chart",
        "Draw a chart from columns of numbers and return a link to the picture.",
        {
            "kind": "string: line, bar or scatter",
            "x": "array: Numbers",
            "y": "array: Numbers",
            "title": "string: Title",
        },
        {
            "kind": "line",
            "x": [1, 2, 3, 4],
            "y": ["{a:1-40}", "{b:1-40}", "{c:1-40}", "{d:1-40}"],
            "title": "Sales of the {item}",
        },
        {"url": "https://charts.example.net/{id:10000-99999}.png", "warnings": []},
        [
            "Plot these quarters for the {item}: {a:1-40}, {b:1-40}, {c:1-40}, {d:1-40}",
            "Another line for the {item}: {a:1-40}, {b:1-40}, {c:1-40} and {d:1-40}.",
        ],
        [
            "Here is the line: https://charts.example.net/{id:10000-99999}.png. From {a} in the first quarter to {d} in the fourth, with {b} and {c} between.",
            "Drawn at https://charts.example.net/{id:10000-99999}.png. Note that the axis begins at zero, so {c} and {d} look closer than they are.",
        ],
    ),
    _Tool(
        "book_table",
        "Reserve a table at a restaurant.",
        {"restaurant": "string: Name", "people": "integer: Guests", "day": "string: Weekday", "time": "string: HH:MM"},
        {"restaurant": "The {room}", "people": "{people:2-9}", "day": "{weekday}", "time": "19:{minute:10-45}"},
        {"confirmed": False, "alternatives": ["18:{early:10-40}", "20:{late:10-50}"]},
        [
            "Table for {people:2-9} at The {room}, {weekday} 19:{minute:10-45}, under {person}.",
            "Then ask The {room} for {people:2-9} on {weekday}, 19:{minute:10-45}",
        ],
        [
            "The {room} has nothing at 19:{minute} on {weekday}. It offers 18:{early} or 20:{late}; which one suits {person}?",
            "No luck either. The {room} could seat {people} of you at 18:{early} or at 20:{late}.",
        ],
        closing=[
            "The later one is fine.",
            "I will ask for it now and tell you when the restaurant has confirmed; until then nothing is booked.",
        ],
    ),
    _Tool(
        "water_plant",
        "Water one plant of the automatic greenhouse.",
        {"plant": "string: Plant", "millilitres": "integer: 20 to 800"},
        {"plant": "{plant}", "millilitres": "{ml:40-700}"},
        {
            "plant": "{plant}",
            "soil_moisture_before": "{before:5-30}",
            "soil_moisture_after": "{after:35-80}",
            "tank_left_ml": "{tank:100-4000}",
        },
        [
            "The {plant} looks dry, give it {ml:40-700} ml.",
            "{plant}: {ml:40-700} ml",
            "and the {plant} gets {ml:40-700} ml as well",
        ],
        [
            "Watered. Soil moisture of the {plant} went from {before} to {after} percent, and {tank} ml are left in the tank.",
            "{plant} done: {before} → {after} percent.",
            "Done, though {tank} ml in the tank will not last the weekend.",
        ],
    ),
    _Tool(
        "lookup_word",
        "Definition and origin of an English word.",
        {"word": "string: One word", "origin": "boolean: Include etymology"},
        {"word": "{topic}", "origin": True},
        {"senses": "{senses:1-7}", "first_use": "1{year:300-899}", "example": "They spoke of {topic} in {city}."},
        ["Since when do people say “{topic}” in English?", "What about “{topic}”?"],
        [
            "The entry has {senses} senses, the oldest from 1{year}. Its example: “They spoke of {topic} in {city}.”",
            "First recorded in 1{year}, today with {senses} senses.",
        ],
    ),
    _Tool(
        "deploy_service",
        "Roll out a version of a service to an environment, one instance after another.",
        {
            "service": "string: Service",
            "version": "string: Semantic version",
            "environment": "string: staging or production",
            "dry_run": "boolean: Only check",
        },
        {"service": "billing", "version": "2.{minor:1-40}.{patch:0-9}", "environment": "staging"},
        {
            "instances": "{count:2-12}",
            "healthy": "{healthy:1-2}",
            "log": "instance 3: migration 00{migration:10-99} waits for a lock held by {person}",
        },
        ["Put billing 2.{minor:1-40}.{patch:0-9} on staging.", "Retry with 2.{minor:1-40}.{patch:0-9}, still staging"],
        [
            "The rollout stands still: {healthy} of {count} instances are healthy, and migration 00{migration} waits for a lock that {person} holds. I have not gone on.",
            "Version 2.{minor}.{patch} hangs at the same point (migration 00{migration}). Ask {person} to release the lock before a third try.",
        ],
        system="You operate deployments. Never touch production without an explicit yes in the conversation. Report what you see, not what you hope.",
    ),
]
