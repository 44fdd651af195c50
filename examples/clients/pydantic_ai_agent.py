"""pydantic-ai: an agent that calls a tool, and one whose answer is an object."""

import os
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


class Fleet(BaseModel):
    """What the answer says about a fleet."""

    replicas: int = Field(ge=0, le=99)
    size: Literal["small", "large"]


print("object:", repr(Agent(model, output_type=NativeOutput(Fleet)).run_sync("How many replicas are there?").output))
print("tool output:", repr(Agent(model, output_type=Fleet).run_sync("How many replicas are there?").output))

agent = Agent(model)


@agent.tool_plain
def get_weather(city: str) -> str:
    """Returns the weather in a city."""
    print("called:", city)
    return "18 degrees and sunny"


print("answer:", agent.run_sync("What is the weather in Paris?").output)
