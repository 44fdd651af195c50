"""instructor: an object from tools, from a JSON schema, and streamed in parts."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")


class Fleet(BaseModel):
    """What the answer says about a fleet."""

    replicas: int = Field(ge=0, le=99)
    size: Literal["small", "large"]


MESSAGES = [{"role": "user", "content": "How many replicas does demo have?"}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    ask = instructor.from_openai(client, mode=mode)
    print(f"{mode.value}:", repr(ask.create(model="demo", messages=MESSAGES, response_model=Fleet, max_retries=0)))

parts = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).create_partial(
    model="demo", messages=MESSAGES, response_model=Fleet, max_retries=0
)
print("partial:", repr(list(parts)[-1]))
