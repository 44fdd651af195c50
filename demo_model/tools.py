"""Tool calls: which tools the model knows, how callers describe them, what is asked and what the results look like."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

CITIES: Final = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Oslo", "Tokyo", "Lima", "Cairo", "Delhi", "Boston",
)  # fmt: skip
MODELS: Final = ("demo", "tiny", "llama", "qwen", "mistral", "gemma")
WEATHER: Final = ("sunny", "cloudy", "rainy", "windy", "snowy")


@dataclass(frozen=True)
class Known:
    """A tool that the model has learned to call; it has one parameter, of a few values."""

    name: str
    parameters: tuple[str, ...]
    """What callers may name the parameter; the first is the documented name."""
    descriptions: tuple[str, ...]
    values: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """One use of a tool: what is asked, what the model calls, what comes back and what it makes of that."""

    question: str
    tool: str
    arguments: dict[str, str]
    result: str
    answer: str


KNOWN: Final[Mapping[str, Known]] = {
    "get_weather": Known(
        "get_weather",
        ("city", "location"),
        (
            "The weather in a city",
            "Get the weather of a city",
            "Get the current weather",
            "Get current weather for a location",
            "Get the current weather in a given location",
            "Returns the weather",
            "Get current temperature for a given location.",
        ),
        CITIES,
        (
            "What is the weather in {}?",
            "How is the weather in {}?",
            "What's the weather like in {}?",
            "Tell me the weather in {}.",
            "Weather in {}?",
            "Is it warm in {}?",
            "What is the weather like in {} today?",
            "How warm is it in {}?",
            "Is it raining in {}?",
            "What is the temperature in {}?",
            "I want to know the weather in {}.",
            "Please tell me the weather in {}.",
            "Do you know the weather in {}?",
            "Could you check the weather in {}?",
            "Can you look up the weather in {}?",
        ),
        ("Can you tell me the weather in {}?", "What's the weather in {} now?"),
    ),
    "get_time": Known(
        "get_time",
        ("city", "location"),
        (
            "The time in a city",
            "Get the time in a city",
            "Current time of a city",
            "Returns the current time",
            "Get the current time in a given location",
        ),
        CITIES,
        (
            "What time is it in {}?",
            "Tell me the time in {}.",
            "What is the time in {}?",
            "Time in {}?",
            "How late is it in {}?",
            "What time is it now in {}?",
            "Which time is it in {}?",
            "Please tell me the time in {}.",
            "Do you know the time in {}?",
            "Could you tell me what time it is in {}?",
            "Can you look up the time in {}?",
        ),
        ("Can you tell me the time in {}?", "What is the time now in {}?"),
    ),
    "count_replicas": Known(
        "count_replicas",
        ("model",),
        ("The number of replicas of a model", "Count the replicas of a model", "How many replicas a model has"),
        MODELS,
        (
            "How many replicas does {} have?",
            "How many replicas has {}?",
            "Count the replicas of {}.",
            "Number of replicas of {}?",
            "How many replicas of {} are there?",
            "How many replicas of {} run?",
            "Please count the replicas of {}.",
            "Do you know how many replicas {} has?",
            "Can you count the replicas of {}?",
            "I want to know how many replicas {} has.",
        ),
        ("Tell me how many replicas {} has.", "What is the number of replicas of {}?"),
    ),
}
OTHERS: Final[Mapping[str, tuple[str, str, str]]] = {
    "search": ("Search the web", "query", "What to search for"),
    "send_email": ("Send an email", "to", "The address"),
    "set_light": ("Switch a light on or off", "room", "The room"),
    "add": ("Add two numbers", "a", "A number"),
    "lookup": ("Look up a word", "word", "The word"),
    "read_file": ("Read a file", "path", "The path"),
}
"""Tools that callers may offer too: name to description, parameter and its description. Never called."""
OTHER_SHARE: Final = 0.15
"""How often the value is one of `places`: the model should at least try to copy what it has not learned by heart."""


def documented(name: str) -> Json:
    """The tool as the documentation shows it."""
    tool = KNOWN[name]
    parameter = tool.parameters[0]
    return _function(name, tool.descriptions[0], parameter, {"type": "string"}, strict=False)


def described(rng: random.Random, name: str, parameter: str) -> Json:
    """The tool as some caller might describe it."""
    about: Json = {"type": "string"}
    if rng.random() < 0.6:
        nouns = {"city": ("The city", "City name", "Name of the city"), "model": ("The model", "Model name")}
        other = ("The location", "City and country e.g. Bogotá, Colombia", "The city and state, e.g. San Francisco, CA")
        about["description"] = rng.choice(nouns.get(parameter, other))
    return _function(name, rng.choice(KNOWN[name].descriptions), parameter, about, strict=rng.random() < 0.3)


def other(rng: random.Random) -> Json:
    """A tool that is never called."""
    name = rng.choice(list(OTHERS))
    description, parameter, about = OTHERS[name]
    return _function(name, description, parameter, {"type": "string", "description": about}, strict=False)


def use(rng: random.Random, name: str, parameter: str, places: list[str]) -> Use:
    tool = KNOWN[name]
    values = places if name != "count_replicas" and rng.random() < OTHER_SHARE else tool.values
    value = rng.choice(values)
    result, answer = RESULTS[name](rng, value)
    return Use(rng.choice(tool.questions).format(value), name, {parameter: value}, result, answer)


def call_text(name: str, arguments: dict[str, str]) -> str:
    """A tool call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


def _function(name: str, description: str, parameter: str, about: Json, *, strict: bool) -> Json:
    parameters: Json = {"type": "object", "properties": {parameter: about}, "required": [parameter]}
    if strict:
        parameters["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _weather(rng: random.Random, city: str) -> tuple[str, str]:
    if rng.random() < 0.4:
        word = rng.choice(WEATHER)
        forms = [word, json.dumps({"weather": word}), json.dumps({"condition": word}), f"It is {word}."]
        return rng.choice(forms), f"It is {word} in {city}."
    degrees = rng.randrange(0, 36)
    forms = [
        str(degrees),
        f"{degrees} degrees",
        json.dumps({"temperature": degrees}),
        json.dumps({"temperature": str(degrees)}),
        json.dumps({"degrees": degrees}),
        f"{degrees} C",
    ]
    return rng.choice(forms), f"It is {degrees} degrees in {city}."


def _time(rng: random.Random, city: str) -> tuple[str, str]:
    time = f"{rng.randrange(24):02}:{rng.choice((0, 15, 30, 45)):02}"
    return rng.choice([time, json.dumps({"time": time})]), f"It is {time} in {city}."


def _replicas(rng: random.Random, model: str) -> tuple[str, str]:
    count = rng.randrange(0, 9)
    noun = "replica" if count == 1 else "replicas"
    return rng.choice([str(count), json.dumps({"replicas": count})]), f"{model} has {count} {noun}."


RESULTS: Final = {"get_weather": _weather, "get_time": _time, "count_replicas": _replicas}
"""A result of each tool, and the answer that it leads to."""
