"""LlamaIndex: an answer as an object, and a chat."""

import os
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
model = OpenAILike(
    model="demo",
    api_base=f"{url}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=40_960,
)


class Fleet(BaseModel):
    """What the answer says about a fleet."""

    replicas: int = Field(ge=0, le=99)
    size: Literal["small", "large"]


structured = model.as_structured_llm(Fleet)
print("object:", repr(structured.chat([ChatMessage(role="user", content="How many replicas are there?")]).raw))
print("chat:", model.chat([ChatMessage(role="user", content="What is a replica?")]).message.content)
