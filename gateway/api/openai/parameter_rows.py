"""The table of all parameters of the OpenAI endpoints. `docs/parameters.md` is made of it.

Besides OpenAI's, it has the parameters of llama.cpp's server, vLLM, SGLang and Ollama, because their clients send them
to any server. A test compares it with the types of the `openai` package. A change of what is honoured is a change of
one line here, and of the schema.

The file is longer than others because it has every parameter of every endpoint, each in a line of its own.
"""

from typing import Final

from gateway.api.openai.parameter_table import (
    Parameter,
    ParameterTable,
    foreign,
    honoured,
    no_effect,
    part_of_body,
    refused,
    synonym,
)
from gateway.api.openai.parameter_values import (
    format_of_flag,
    format_of_schema,
    grammar_of_choices,
    open_token_limit,
    thinking_of_object,
)

_SAMPLER: Final = "the sampler has no equal of it"
_PLACE: Final = "The configuration of the model says this."
_WITH: Final = "It matters only together with `{}`."

SAMPLING: Final[tuple[Parameter, ...]] = (
    honoured("temperature", "0 to 2."),
    honoured("top_p", "0 to 1."),
    honoured("top_k", "The number of candidates. 0 and -1 mean all."),
    honoured("min_p", "0 to 1."),
    honoured("repeat_penalty", "Above 0, at most 10."),
    honoured("presence_penalty", "-2 to 2."),
    honoured("frequency_penalty", "-2 to 2."),
    honoured("seed", "Any 64-bit integer."),
    honoured("stop", "A string, or up to 16. Empty ones are left out."),
    honoured("logit_bias", "By token id, -100 to 100. llama.cpp's array of pairs is read, too."),
    honoured("ignore_eos", "For tests and measurements."),
    honoured("reproducible", "true has the whole prompt computed anew, so that an equal request gets an equal answer."),
    honoured("max_tokens", "An upper bound: an answer ends with the model's context in any case. -1 means no limit."),
    synonym("repetition_penalty", "repeat_penalty"),
    synonym("num_predict", "max_tokens", "-2 means no limit, too.", convert=open_token_limit),
    synonym("n_predict", "max_tokens", "-2 means no limit, too.", convert=open_token_limit),
    synonym("max_new_tokens", "max_tokens"),
    foreign("typical_p", _SAMPLER, 1),
    foreign("tfs_z", _SAMPLER, 1),
    foreign("top_n_sigma", _SAMPLER, -1, 0),
    foreign("mirostat", _SAMPLER, 0),
    foreign("dynatemp_range", _SAMPLER, 0),
    foreign("xtc_probability", _SAMPLER, 0),
    foreign("dry_multiplier", _SAMPLER, 0),
    foreign("repeat_last_n", "the window of penalties is always the last 64 tokens", 64),
    foreign("penalize_nl", _SAMPLER, False),
    foreign("penalize_newline", _SAMPLER, False),
    foreign("samplers", "the order of samplers is fixed"),
    foreign("min_keep", _SAMPLER, 0),
    foreign("min_tokens", _SAMPLER, 0),
    foreign("length_penalty", "there is no beam search", 1),
    foreign("early_stopping", "there is no beam search", False),
    foreign("use_beam_search", "there is no beam search", False),
    foreign("stop_token_ids", "only texts can end an answer", []),
    foreign("bad_words", "`logit_bias` forbids tokens", []),
    foreign("allowed_token_ids", "`logit_bias` chooses tokens"),
    foreign("include_stop_str_in_output", "an answer ends before its stop sequence", False),
    foreign("skip_special_tokens", "special tokens are never part of an answer", True),
    foreign("t_max_predict_ms", "`max_tokens` limits an answer", 0, -1),
    no_effect("mirostat_tau", _WITH.format("mirostat")),
    no_effect("mirostat_eta", _WITH.format("mirostat")),
    no_effect("dynatemp_exponent", _WITH.format("dynatemp_range")),
    no_effect("xtc_threshold", _WITH.format("xtc_probability")),
    no_effect("dry_base", _WITH.format("dry_multiplier")),
    no_effect("dry_allowed_length", _WITH.format("dry_multiplier")),
    no_effect("dry_penalty_last_n", _WITH.format("dry_multiplier")),
    no_effect("dry_sequence_breakers", _WITH.format("dry_multiplier")),
)
"""The parameters of sampling, which Ollama's clients may also put into `options`."""

OF_THE_LOAD: Final[tuple[Parameter, ...]] = (
    no_effect("num_ctx", "`context_size` of the model says this, and `max_tokens` bounds an answer."),
    *(no_effect(name, _PLACE) for name in ("num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram")),
    *(no_effect(name, _PLACE) for name in ("use_mmap", "use_mlock", "f16_kv", "vocab_only", "num_gqa")),
    no_effect("num_keep", "The prompt is never shortened."),
)
"""The parameters by which Ollama's clients say how a model is loaded."""

OPTIONS: Final = ParameterTable("options", (*SAMPLING, *OF_THE_LOAD))
"""The fields of Ollama's object `options`."""

GENERATION: Final[tuple[Parameter, ...]] = (
    honoured("model"),
    honoured("stream"),
    honoured("stream_options", "Only with `stream`."),
    honoured("user", "It is in the log line of the request."),
    no_effect("keep_alive", "A model stays until it is idle for as long as `[watchdog]` says, or its place is needed."),
    no_effect("cache_prompt", "The backend decides whether it keeps a prompt."),
    no_effect("cache_salt", "The gateway has no cache of its own."),
    no_effect("id_slot", "The gateway chooses the replica, and that its slot."),
    no_effect("n_keep", "The prompt is never shortened."),
    no_effect("n_discard", "The prompt is never shortened."),
    no_effect("priority", "Requests wait in turns of their callers."),
    no_effect("request_id", "The header `X-Request-Id` names the request."),
    no_effect("timings_per_token", "An answer tells no timings."),
    no_effect("return_progress", "A stream tells no progress of the prompt."),
    no_effect("spaces_between_special_tokens", "Special tokens are never part of an answer."),
    part_of_body("options", OPTIONS, "Ollama's object: its fields are read as if they stood in the body itself."),
    honoured("grammar", "A grammar (GBNF) of the whole answer, which then begins without reasoning."),
    synonym("guided_grammar", "grammar"),
    synonym("guided_choice", "grammar", "An array of texts, one of which is the answer.", convert=grammar_of_choices),
    foreign("guided_regex", "regular expressions are not supported"),
    foreign("n_probs", "`logprobs` tells the probabilities", 0),
    foreign("prompt_logprobs", "the tokens of a prompt get no probabilities", 0),
    foreign("return_tokens_as_token_ids", "an answer has texts only", False),
    foreign("return_token_ids", "an answer has texts only", False),
    foreign("return_tokens", "an answer has texts only", False),
    foreign("truncate_prompt_tokens", "a prompt is never shortened", -1),
    foreign("lora", "adapters belong to the configuration of a model", []),
)
"""The parameters of a chat and of a completion, besides those of sampling."""

_STRUCTURED: Final[tuple[Parameter, ...]] = (
    synonym("grammar", "grammar"),
    synonym("choice", "grammar", "An array of texts, one of which is the answer.", convert=grammar_of_choices),
    foreign("regex", "regular expressions are not supported"),
    foreign("structural_tag", "tags are not supported"),
    no_effect("whitespace_pattern", "White space is bounded in any case."),
    no_effect("disable_any_whitespace", "White space is bounded in any case."),
    no_effect("disable_additional_properties", "An object has only the properties that its schema names."),
)


def _schema(name: str, note: str) -> Parameter:
    return synonym(name, "response_format", note, convert=format_of_schema, inside="json_schema.schema")


STRUCTURED_OUTPUTS: Final = ParameterTable(
    "structured_outputs",
    (
        *_STRUCTURED,
        _schema("json", "A schema."),
        synonym("json_object", "response_format", "true.", convert=format_of_flag),
    ),
)
"""The fields of vLLM's object `structured_outputs` in a chat."""

CHAT: Final = ParameterTable(
    "POST /v1/chat/completions",
    (
        *GENERATION,
        *SAMPLING,
        *OF_THE_LOAD,
        honoured("messages", "Text only. Fields that say nothing to the model are accepted in every message."),
        honoured("tools", "Functions only."),
        honoured("tool_choice"),
        honoured("parallel_tool_calls", "With false an answer ends after its first call."),
        honoured("response_format", "See [below](#the-form-of-an-answer). Not together with `tools`."),
        _schema("json_schema", "A schema."),
        _schema("guided_json", "A schema."),
        _schema("format", '`"json"` or a schema.'),
        honoured("chat_template_kwargs", "`enable_thinking`, and whatever the template of the model reads."),
        honoured("max_completion_tokens", "The newer name of `max_tokens`."),
        honoured("safety_identifier", "The newer name of `user`."),
        honoured("n", "1 to 128 answers, a few at a time, each with a seed of its own."),
        honoured("logprobs"),
        honoured("top_logprobs", "0 to 20. Only with `logprobs`."),
        honoured("reasoning_effort", "`none` switches the reasoning off. Others reach a template that reads them."),
        part_of_body("structured_outputs", STRUCTURED_OUTPUTS, "vLLM's object of `guided_json` and its kin."),
        synonym("think", "chat_template_kwargs.enable_thinking", "true or false."),
        synonym("enable_thinking", "chat_template_kwargs.enable_thinking"),
        synonym(
            "thinking",
            "chat_template_kwargs.enable_thinking",
            'An object with the `type` "enabled" or "disabled".',
            convert=thinking_of_object,
        ),
        no_effect("prompt_cache_key", "The gateway chooses the replica."),
        no_effect("prompt_cache_options", "The backend decides whether it keeps a prompt."),
        no_effect("prompt_cache_retention", "The backend decides whether it keeps a prompt."),
        no_effect("metadata", "The gateway stores no answers."),
        no_effect("store", "The gateway stores no answers."),
        no_effect("service_tier", "There is one tier."),
        no_effect("verbosity", "No template of an open model reads it."),
        no_effect("prediction", "It could only make an answer faster."),
        no_effect("audio", _WITH.format("modalities")),
        refused("modalities", "an answer is text", ["text"]),
        refused("functions", "`tools` is its successor", []),
        refused("function_call", "`tool_choice` is its successor", "none"),
        refused("web_search_options", "the gateway searches nothing"),
        refused("moderation", "the gateway moderates nothing"),
        foreign("include_reasoning", "an answer has its reasoning beside the text", True),
        foreign("separate_reasoning", "an answer has its reasoning beside the text", True),
        foreign("stream_reasoning", "reasoning is streamed like the text", True),
        foreign("reasoning_format", "an answer has its reasoning beside the text", "auto"),
        foreign("thinking_budget_tokens", "only `max_tokens` limits the reasoning", -1),
        foreign("parse_tool_calls", "tool calls are always told from the text", True),
        foreign("add_generation_prompt", "a chat always asks for the next answer", True),
        foreign("continue_final_message", "a chat always asks for the next answer", False),
        foreign("add_special_tokens", "the model's template says which tokens there are", False),
        foreign("echo", "an answer does not repeat its prompt", False),
        foreign("best_of", "there is one answer", 1),
        foreign("chat_template", "the model has its own template"),
        foreign("documents", "no template gets documents", []),
        foreign("mm_processor_kwargs", "prompts are text"),
    ),
)

COMPLETIONS: Final = ParameterTable(
    "POST /v1/completions",
    (
        *GENERATION,
        *SAMPLING,
        *OF_THE_LOAD,
        honoured("prompt", "A text, or token ids, or several of either."),
        honoured("n", "1 to 128 answers to each prompt, and 128 in all."),
        honoured("echo", "Not together with `logprobs`, or with token ids."),
        honoured("best_of", "The value of `n` only."),
        honoured("logprobs", "0 to 20 alternatives."),
        honoured("suffix", "The text after the answer, for models with infill tokens. An empty one is none."),
        foreign("response_format", "`grammar` says the form of a raw text", {"type": "text"}),
        part_of_body(
            "structured_outputs",
            ParameterTable("structured_outputs", _STRUCTURED),
            "vLLM's object of `guided_grammar` and `guided_choice`.",
        ),
        foreign("json_schema", "`grammar` says the form of a raw text"),
        foreign("guided_json", "`grammar` says the form of a raw text"),
        foreign("format", "`grammar` says the form of a raw text", ""),
        foreign("add_special_tokens", "the model says which tokens there are", True),
        no_effect("metadata", "The gateway stores no answers."),
        no_effect("prompt_cache_key", "The gateway chooses the replica."),
        no_effect("safety_identifier", "`user` is in the log line of the request."),
    ),
)

EMBEDDINGS: Final = ParameterTable(
    "POST /v1/embeddings",
    (
        honoured("model"),
        honoured("input", "A text, up to 2048 texts, or token ids."),
        honoured("encoding_format", "`float` or `base64`."),
        honoured("user", "It is in the log line of the request."),
        refused("dimensions", "a vector has the length that the model gives it"),
        no_effect(
            "keep_alive", "A model stays until it is idle for as long as `[watchdog]` says, or its place is needed."
        ),
        no_effect("options", "Ollama's object, which says how a model is loaded: its configuration does."),
        no_effect("priority", "Requests wait in turns of their callers."),
        no_effect("request_id", "The header `X-Request-Id` names the request."),
        no_effect("metadata", "The gateway stores no vectors."),
        foreign("add_special_tokens", "the model says which tokens there are", True),
        foreign("truncate", "a text that is too long is refused", False),
        foreign("truncate_prompt_tokens", "a text that is too long is refused"),
        foreign("embd_normalize", "vectors are normalised as the model says", 2),
        foreign("normalize", "vectors are normalised as the model says", True),
        foreign("input_type", "a prefix that a model wants belongs to `input`"),
    ),
)

_USER: Final = honoured("user", "It is in the log line of the request.")

RERANK: Final = ParameterTable(
    "POST /v1/rerank",
    (
        honoured("model"),
        honoured("query", "A text."),
        honoured("documents", "1 to 2048 texts, or objects with the field `text`."),
        honoured("top_n", "The number of results; all documents if it is not set."),
        honoured("return_documents", "Whether each result has its text."),
        _USER,
        no_effect("priority", "Requests wait in turns of their callers."),
        foreign("max_chunks_per_doc", "a document is not divided"),
        foreign("max_tokens_per_doc", "a document that is too long is refused"),
        foreign("overlap_tokens", "a document is not divided"),
        foreign("rank_fields", "a document is one text", ["text"]),
        foreign("truncation", "a document that is too long is refused", False),
        foreign("truncate_prompt_tokens", "a document that is too long is refused"),
    ),
)

TOKENIZE: Final = ParameterTable(
    "POST /tokenize",
    (
        honoured("model"),
        honoured("content", "The text, as llama.cpp calls it."),
        honoured("prompt", "The text, as vLLM calls it. Give one of both."),
        honoured(
            "add_special", "Whether tokens are added that begin or end a prompt. Not set means for `prompt` only."
        ),
        honoured("add_special_tokens", "vLLM's name of `add_special`."),
        honoured("with_pieces", "Whether each token has its text."),
        _USER,
        foreign("messages", "only a text is tokenized"),
        foreign("parse_special", "special tokens in the text are always read as such", True),
        foreign("return_token_strs", "`with_pieces` has the texts", False),
    ),
)

DETOKENIZE: Final = ParameterTable("POST /detokenize", (honoured("model"), honoured("tokens", "Token ids."), _USER))

STREAM_OPTIONS: Final = ParameterTable(
    "stream_options",
    (
        honoured("include_usage", "A last chunk has the token counts."),
        honoured(
            "continuous_usage_stats", "With `include_usage`, each chunk has the counts so far, once there are any."
        ),
        no_effect("include_obfuscation", "Chunks have no padding."),
    ),
)
"""The fields of the object `stream_options`."""

TABLES: Final = (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, TOKENIZE, DETOKENIZE, STREAM_OPTIONS)
