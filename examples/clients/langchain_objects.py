"""LangChain: `with_structured_output` in each of its three methods, and a tool that the model calls."""

import os
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
model = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="demo", max_tokens=200)


class Fleet(BaseModel):
    """What the answer says about a fleet."""

    replicas: int = Field(ge=0, le=99)
    size: Literal["small", "large"]


@tool
def get_weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"18 degrees and sunny in {city}"


for method in ("json_schema", "function_calling"):
    print(f"{method}:", repr(model.with_structured_output(Fleet, method=method).invoke("How many replicas are there?")))

# This mode asks for any object. What the small demo model makes of it is none of a fleet, so it is not read as one.
print("json_mode:", type(model.with_structured_output(None, method="json_mode").invoke("hi")).__name__)

answer = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
(call,) = answer.tool_calls
print("call:", call["name"], call["args"], "->", get_weather.invoke(call["args"]))
