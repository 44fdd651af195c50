"""Reads PredictOptions into a request for llama.cpp. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.backends.metadata import GRAMMAR_PARAM_KEY, SUFFIX_KEY, THINKING_KEY, TOKENS_KEY
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import TOOLS_PARAM, Param
from gateway.engines.llama_cpp.errors import invalid
from gateway.engines.llama_cpp.forms.forced_call import ForcedCall, force_call
from gateway.engines.llama_cpp.infill import infill_prompt
from gateway.engines.llama_cpp.options import BOOLEANS
from gateway.engines.llama_cpp.sampling import Body, SamplingLimits, parse_json, sampling_body
from gateway.engines.llama_cpp.template_settings import TEMPLATE_SETTINGS, template_settings
from gateway.engines.llama_cpp.tools import TOOL_CHOICE, TOOLS, earlier_calls, tools_body

REFUSED_FIELDS: Final = {
    "Images": "messages",
    "Videos": "messages",
    "Audios": "messages",
    "NegativePrompt": "negative_prompt",
}
"""The fields that would change the answer and that are not supported, with OpenAI's name for each. They are refused
and never ignored."""

CHAT_ONLY_FIELDS: Final = {"Tools": "tools", "ToolChoice": "tool_choice"}
"""The fields that only a chat supports: a raw prompt has no template that would show the model its tools."""

STREAMED: Final[Body] = {
    "stream": True,
    "stream_options": {"include_usage": True},
    # Chunks are not tokens, so each chunk carries the counts.
    "timings_per_token": True,
    # There is a chunk per prompt batch, so that a call can be cancelled before its first token.
    "return_progress": True,
}


CONTINUED: Final[Body] = {"continue_final_message": True, "add_generation_prompt": False}
"""The parameters of a chat whose last message is the beginning of the answer."""


@dataclass(frozen=True)
class GenerationRequest:
    """The body of a completion request as llama.cpp takes it, and the parameter that its input came from."""

    body: Body
    param: Param
    """The parameter with the input: `messages` for a chat through the model's template, `prompt` for raw text."""
    chat: Body | None = None
    """The chat that the template turns into the prompt of `body`, for an answer with a grammar. llama.cpp's own chats
    let reasoning come before the grammar. None means that `body` is complete."""
    call: ForcedCall | None = None
    """The call that the answer has to be. None means that it may be anything."""
    grammar_param: str = TOOLS_PARAM
    """The parameter that the grammar was made from."""
    logprobs: int | None = None
    """The number of alternatives that are told for each token. None means that no probabilities are told."""

    @property
    def is_chat(self) -> bool:
        """Whether llama.cpp is asked for a chat and not for a raw completion."""
        return self.param == "messages" and self.chat is None


def generation_request(options: pb.PredictOptions, limits: SamplingLimits) -> GenerationRequest:
    """Returns the request for llama.cpp. Raises `CallError` (INVALID_ARGUMENT) that names the parameter."""
    request = _without_logprobs(options, limits)
    if not (options.Logprobs or options.TopLogprobs):
        return request
    # llama.cpp tells nothing at 0 alternatives, so it is asked for one, which the answer leaves out.
    asked = min(max(options.TopLogprobs, 1), limits.vocabulary_size)
    fields = {"logprobs": True, "top_logprobs": asked} if request.is_chat else {"logprobs": asked}
    return replace(request, body={**request.body, **fields}, logprobs=options.TopLogprobs)


def _without_logprobs(options: pb.PredictOptions, limits: SamplingLimits) -> GenerationRequest:
    _refuse(options, REFUSED_FIELDS, "is not supported by the llama-cpp engine")
    body = STREAMED | sampling_body(options, limits)
    grammar_param = options.Metadata.get(GRAMMAR_PARAM_KEY, "grammar") if options.Grammar else TOOLS_PARAM
    if options.Grammar:
        body["grammar"] = options.Grammar
    if not options.UseTokenizerTemplate:
        _refuse(options, CHAT_ONLY_FIELDS, "is for chats, not for raw prompts")
        return GenerationRequest({**body, "prompt": _prompt(options, limits)}, "prompt", grammar_param=grammar_param)
    chat = _chat_body(options, limits)
    if TOOLS in chat and options.Grammar:
        raise invalid(f"{grammar_param} can't be combined with tools", param=grammar_param)
    if chat.get(TOOL_CHOICE) == "required":
        return _forced(body, chat, limits)
    if options.Grammar:
        return GenerationRequest(body, "messages", chat=_without_thinking(chat), grammar_param=grammar_param)
    return GenerationRequest(body | chat, "messages")


def _forced(body: Body, chat: Body, limits: SamplingLimits) -> GenerationRequest:
    """Returns the request for an answer that is a call. Stop words are for texts, and would cut the arguments."""
    call = force_call(chat[TOOLS], limits.call_format)
    kept = {name: value for name, value in body.items() if name != "stop"}
    return GenerationRequest({**kept, "grammar": call.grammar}, "messages", chat=_without_thinking(chat), call=call)


def _without_thinking(chat: Body) -> Body:
    """Returns a chat for the template, with thinking switched off where the template can do that."""
    settings = {**chat.get(TEMPLATE_SETTINGS, {}), THINKING_KEY: False}
    kept = {name: value for name, value in chat.items() if name in ("messages", TOOLS)}
    return {**kept, TEMPLATE_SETTINGS: settings}


def _prompt(options: pb.PredictOptions, limits: SamplingLimits) -> str | Sequence[int | str]:
    """Returns a raw prompt: a text, the ids of its tokens, or both around what is to be filled in. Raises
    `CallError`."""
    before = _beginning(options, limits)
    suffix = options.Metadata.get(SUFFIX_KEY)
    return before if suffix is None else infill_prompt(limits.infill, before, suffix)


def _beginning(options: pb.PredictOptions, limits: SamplingLimits) -> str | list[int]:
    """Returns the text of a raw prompt, or the ids of its tokens. Raises `CallError`."""
    text = options.Metadata.get(TOKENS_KEY)
    if text is None:
        return options.Prompt
    tokens = parse_json(text, "prompt")
    if not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise invalid("prompt must be an array of token ids", param="prompt")
    if any(not 0 <= token < limits.vocabulary_size for token in tokens):
        raise invalid(f"prompt must be token ids below {limits.vocabulary_size}", param="prompt")
    return tokens


def embedding_input(options: pb.PredictOptions, limits: SamplingLimits) -> str | list[int]:
    """Returns one text or the ids of its tokens. Raises `CallError` (INVALID_ARGUMENT)."""
    tokens = list(options.EmbeddingTokens)
    if not (options.Embeddings or tokens):
        raise invalid("input must not be empty", param="input")
    if any(not 0 <= token < limits.vocabulary_size for token in tokens):
        raise invalid(f"input must be token ids below {limits.vocabulary_size}", param="input")
    return options.Embeddings or tokens


def _refuse(options: pb.PredictOptions, fields: Mapping[str, str], why: str) -> None:
    for field, param in fields.items():
        if getattr(options, field):
            raise invalid(f"{field} {why}", param=param)


def _chat_body(options: pb.PredictOptions, limits: SamplingLimits) -> Body:
    """Returns the body of a chat. With `reasoning_format` auto, text that a template marks as reasoning is separate
    from the answer."""
    body: Body = {"messages": _messages(options, limits), "reasoning_format": "auto"}
    if _is_unfinished(options.Messages[-1]):
        body |= CONTINUED
    body |= tools_body(options.Tools, options.ToolChoice, limits)
    thinking = options.Metadata.get(THINKING_KEY)
    if thinking is not None:
        if thinking not in BOOLEANS:
            message = f"{THINKING_KEY} must be true or false, not {thinking[:100]!r}"
            raise invalid(message, param=f"{TEMPLATE_SETTINGS}.{THINKING_KEY}")
        body[TEMPLATE_SETTINGS] = {THINKING_KEY: BOOLEANS[thinking]}
    if settings := template_settings(options.Metadata, limits):
        body[TEMPLATE_SETTINGS] = {**settings, **body.get(TEMPLATE_SETTINGS, {})}
    return body


def _messages(options: pb.PredictOptions, limits: SamplingLimits) -> list[dict[str, Any]]:
    if not options.Messages:
        raise invalid("messages must not be empty", param="messages")
    return [_message(message, limits) for message in options.Messages]


def _is_unfinished(message: pb.Message) -> bool:
    """Returns whether the answer continues this last message. One with tool calls is complete: an answer that begins
    behind it is a new one."""
    return message.role == "assistant" and not message.tool_calls


def _message(message: pb.Message, limits: SamplingLimits) -> dict[str, Any]:
    optional = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": message.tool_calls and earlier_calls(message.tool_calls, limits),
    }
    return {
        "role": message.role,
        "content": message.content,
        **{name: value for name, value in optional.items() if value},
    }
