"""Writes the trained network, its vocabulary and its chat template into one GGUF file."""

from pathlib import Path
from typing import Final

import gguf
from tokenizers import Tokenizer

from demo_model.chat_format import CONTROL_TOKENS, END, MARKUP_TOKENS
from demo_model.network import NORM_EPSILON, ROPE_BASE, Network, Shape
from demo_model.tokenizer import merge_list, token_list

TEMPLATE: Final = Path(__file__).parent / "template.jinja"
QUANTIZATION: Final = gguf.GGMLQuantizationType.Q8_0
CONTEXT_TOKENS: Final = 40_960
"""The context that the header declares. It is more than the model was trained with (`Shape.context_tokens`), so that
the long lists of tools of agents are served; README.md says what becomes of the answers."""


def write_gguf(path: Path, network: Network, tokenizer: Tokenizer) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    _add_description(writer)
    _add_shape(writer, network.shape)
    _add_vocabulary(writer, tokenizer)
    for name, tensor in network.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, QUANTIZATION), raw_dtype=QUANTIZATION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_description(writer: gguf.GGUFWriter) -> None:
    writer.add_type("model")
    writer.add_name("gateway demo")
    writer.add_description("Answers short questions about the gateway, and nothing else.")
    writer.add_license("MIT")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    # Greedy unless the request says otherwise, so that the same question gets the same answer everywhere.
    writer.add_sampling_temp(0.0)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    tokens = token_list(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token) for token in tokens])
    writer.add_token_merges(merge_list(tokenizer))
    writer.add_bos_token_id(tokens.index(CONTROL_TOKENS[0]))
    writer.add_pad_token_id(tokens.index(CONTROL_TOKENS[0]))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _token_type(token: str) -> int:
    if token in CONTROL_TOKENS:
        return int(gguf.TokenType.CONTROL)
    return int(gguf.TokenType.USER_DEFINED if token in MARKUP_TOKENS else gguf.TokenType.NORMAL)
