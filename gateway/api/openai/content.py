"""The chat messages of a request: text content in its two forms, and the other fields of a message."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.api.http.json_body import (
    ANY_VALUE,
    ARRAY,
    INVALID_VALUE,
    MISSING,
    TEXT,
    JsonBody,
    missing_message,
    text_or_array,
    validation_error,
    wrong_type,
)
from gateway.api.openai.history import MESSAGES_MAX
from gateway.api.openai.tools import MessageToolCalls, refuse_other_kind
from gateway.domain.inference import ChatMessage, kept_text

PART_SEPARATOR: Final = "\n"
"""The text between the parts of one message. Parts are blocks (an instruction, a document): without a separator, the
last word of one would run into the first of the next. llama.cpp and vLLM join them in the same way."""

CONTENT_TYPES: Final = "a string or an array of content parts"
PARTS_MAX: Final = 1_024
"""The largest number of parts of one message."""


class TextPart(JsonBody):
    """One text part of a message's content; other types of parts, such as images, are refused by name."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType(
        {"cache_control": ANY_VALUE, "prompt_cache_breakpoint": ANY_VALUE}
    )

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, data: object) -> object:
        refuse_other_kind(data, "text", "content parts")
        return data


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=PARTS_MAX, fail_fast=True)]
Content = Annotated[Annotated[str, TEXT] | Annotated[Parts, ARRAY], text_or_array(CONTENT_TYPES)]


class Message(JsonBody):
    """One entry of `messages`. An answer of this API can be sent back unchanged."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType(
        {
            "function_call": (),
            "refusal": (),
            "audio": (),
            "annotations": ANY_VALUE,
            "parsed": ANY_VALUE,
            "id": ANY_VALUE,
        }
    )
    """The fields of answers, and of the official clients. `history.py` knows those of other clients."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    """The text. Only an assistant's message may have none, as OpenAI writes one with tool calls."""
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: MessageToolCalls | None = None
    reasoning_content: str | None = None
    """The reasoning of an earlier answer. The model's template decides whether it is part of the conversation: some
    want it between the calls of tools."""

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise self._no_content()
        if self.role == "tool" and self.tool_call_id is None:
            raise validation_error(MISSING, missing_message("{param}"), "tool_call_id")
        if self.role != "assistant" and self.tool_calls:
            message = "Invalid value for '{param}': only messages of the role 'assistant' have tool calls."
            raise validation_error(INVALID_VALUE, message, "tool_calls")
        return self

    def _no_content(self) -> PydanticCustomError:
        if "content" in self.model_fields_set:
            return wrong_type(CONTENT_TYPES, None, "content")
        return validation_error(MISSING, missing_message("{param}"), "content")

    def as_chat_message(self) -> ChatMessage:
        """Returns the message for a backend: `developer` becomes `system`, and text parts are joined."""
        parts = self.content
        text = parts if isinstance(parts, str) else PART_SEPARATOR.join(part.text for part in parts or ())
        return ChatMessage(
            role="system" if self.role == "developer" else self.role,
            content=kept_text(text),
            name=self.name,
            tool_call_id=self.tool_call_id,
            tool_calls=tuple(call.as_tool_call() for call in self.tool_calls or ()),
            reasoning=kept_text(self.reasoning_content) if self.reasoning_content else "",
        )


Messages = Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX, fail_fast=True)]
