"""openai-python: an answer as an object, whole and streamed, and a function that the model calls."""

import json
import os
from enum import StrEnum

from openai import OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")


class Size(StrEnum):
    """The sizes that an answer may name."""

    SMALL = "small"
    LARGE = "large"


class Fleet(BaseModel):
    """What the answer says about a fleet."""

    replicas: int = Field(ge=0, le=99)
    size: Size
    is_ready: bool


QUESTION = "How many replicas does demo have?"
completion = client.chat.completions.parse(
    model="demo", messages=[{"role": "user", "content": QUESTION}], response_format=Fleet
)
print("parse:", completion.choices[0].message.parsed)

with client.chat.completions.stream(
    model="demo", messages=[{"role": "user", "content": QUESTION}], response_format=Fleet
) as stream:
    for _ in stream:
        pass
    print("stream:", stream.get_final_completion().choices[0].message.parsed)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
answer = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], tool_choice="required")
(call,) = answer.choices[0].message.tool_calls
print("call:", call.function.name, json.loads(call.function.arguments))

messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}]
answer = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], max_tokens=100)
print("answer:", answer.choices[0].message.content)
