"""A Gemma2 checkpoint as a GGUF file for llama.cpp, with placeholders as vocabulary: prompts are given as token ids."""

import json
from pathlib import Path
from typing import Any

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Modules of a layer: Hugging Face's names, and GGUF's."""


def to_gguf(checkpoint: Path, out: Path, kind: str) -> None:
    """Write `out/model.gguf`.

    Args:
        checkpoint: a Gemma2 in float32 in one file.
        out: a new folder.
        kind: type of the matrices, such as `F32`, `Q8_0` or `Q4_0`; norms are in float32.
    """
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    out.mkdir()
    writer = gguf.GGUFWriter(out / "model.gguf", "gemma2")
    _describe(writer, config)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if tensor.ndim == 1:
            writer.add_tensor(_name(name), tensor + np.float32(1))  # Gemma's norms multiply by 1 + weight
        else:
            writer.add_tensor(_name(name), gguf.quants.quantize(tensor, wanted), raw_dtype=wanted)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def _name(name: str) -> str:
    """GGUF's name of a tensor."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """The sizes of the model, and a vocabulary in which every token is a placeholder."""
    import gguf

    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])
    size = config["vocab_size"]
    special = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    kinds = [gguf.TokenType.CONTROL if index in special.values() else gguf.TokenType.NORMAL for index in range(size)]
    for byte in range(256):  # llama.cpp wants a token for every byte
        kinds[size - 256 + byte] = gguf.TokenType.BYTE
    tokens = [f"<0x{index - size + 256:02X}>" if index >= size - 256 else f"token{index}" for index in range(size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(special["bos"])
    writer.add_eos_token_id(special["eos"])
    writer.add_pad_token_id(special["pad"])
