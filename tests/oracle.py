"""An oracle for one row of tokens: what a funnel computes, as plain loops over numpy float64.

It reads like the specification and is slow on purpose. Models are compared with it, so it shares no code with
`funnel_export`, torch or transformers: weights come in as arrays, settings as plain values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Funnel:
    """A funnel's fields as plain values."""

    pool_layer: int
    recover_layer: int
    stride: int
    pooling: str = "mean"
    recovery: str = "delta"
    slot_positions: str = "original"
    lookahead: bool = False
    drop: bool = False


@dataclass
class Trace:
    """What the oracle saw on its way."""

    layers: list[Array] = field(default_factory=list)
    """Output of each layer: a row per token, or per slot in the middle layers."""
    hidden: Array | None = None
    """Tokens after the final norm."""


def list_windows(num_tokens: int, stride: int, lookahead: bool) -> list[list[int]]:
    """The windows that have a slot: {0}, then {(j-1)S+1 .. jS}; an unfinished last one only with lookahead."""
    windows = [[0]]
    for j in range(1, num_tokens + 1):
        tokens = list(range((j - 1) * stride + 1, j * stride + 1))
        real = [p for p in tokens if p < num_tokens]
        closed = real == tokens
        if closed or (lookahead and real):
            windows.append(real)
    return windows


def slot_read_by(token: int, stride: int, lookahead: bool) -> int:
    """floor(p/S), or with lookahead ceil(p/S)."""
    return (token + stride - 1) // stride if lookahead else token // stride


def pool_window(rows: Array, pooling: str) -> Array:
    """One slot from the hidden states of a window's tokens."""
    if pooling == "mean":
        return sum(rows, start=np.zeros(rows.shape[1])) / len(rows)
    if pooling == "max":
        return rows.max(axis=0)
    return {"first": rows[0], "last": rows[-1]}[pooling]


def recover_token(x: Array, slot_in: Array, slot_out: Array, recovery: str) -> Array:
    """A token's hidden state after recovery from its slot."""
    return {
        "delta": x + (slot_out - slot_in),
        "add": x + slot_out,
        "average": (x + slot_out) / 2,
        "replace": slot_out,
    }[recovery]


def recover_by_map(token: int, x: Array, slot_in: Array, slot_out: Array, stride: int, weights: Weights) -> Array:
    """A token's hidden state after recovery `linear`: delta, and for all but the first token a map of its class."""
    change = slot_out - slot_in
    if token == 0:
        return x + change
    which = "closed" if token % stride == 0 else "stale"
    weight, width = weights[f"funnel.{which}.weight"], len(x)
    return x + change + weight[:, :width] @ x + weight[:, width:] @ change + weights[f"funnel.{which}.bias"]


def drop_layers(x: Array, recovery: str, weights: Weights) -> Array:
    """Tokens go past layers that are left out: as they are, or by a constant for the first and a map for the rest."""
    if recovery == "delta":
        return x
    rest = x[1:] + x[1:] @ weights["funnel.rest.weight"].T + weights["funnel.rest.bias"]
    return np.concatenate([x[:1] + weights["funnel.first"], rest])


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Gemma's norm: the weight counts from zero."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * (1 + weight)


def softcap(x: Array, cap: float | None) -> Array:
    """Squash into (-cap, cap); no cap leaves `x` alone."""
    return x if cap is None else np.tanh(x / cap) * cap


def gelu(x: Array) -> Array:
    """The tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate(heads: Array, position: int, theta: float, factor: float) -> Array:
    """RoPE on [heads, head_dim]: pair (i, i + d/2) turns by position * theta^(-2i/d) / factor."""
    dim = heads.shape[-1]
    turned = heads.copy()
    for i in range(dim // 2):
        angle = position * theta ** (-2 * i / dim) / factor
        a, b = heads[:, i], heads[:, i + dim // 2]
        turned[:, i] = a * np.cos(angle) - b * np.sin(angle)
        turned[:, i + dim // 2] = b * np.cos(angle) + a * np.sin(angle)
    return turned


def slides(config: Config, layer: int) -> bool:
    """Whether a layer has a sliding window; the first Gemma has none."""
    return config["model_type"] != "gemma" and config["layer_types"][layer] == "sliding_attention"


def sees(query: int, key: int, config: Config, layer: int) -> bool:
    """Whether a query at a position sees a key at another; Gemma 3 may look at both sides, half a window each."""
    both_sides = config["model_type"] == "gemma3_text" and config["use_bidirectional_attention"]
    if both_sides:
        return not slides(config, layer) or abs(query - key) <= config["sliding_window"] // 2
    return key <= query and (not slides(config, layer) or query - key < config["sliding_window"])


def attend(x: Array, positions: Sequence[int], weights: Weights, layer: int, config: Config) -> Array:
    """Attention, query by query over the keys that it sees."""
    name = f"layers.{layer}.self_attn"
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    rope = config["rope_parameters"]
    if config["model_type"] == "gemma3_text":  # its two kinds of layers have two
        rope = rope[config["layer_types"][layer]]
    n = len(x)
    queries = (x @ weights[f"{name}.q_proj.weight"].T).reshape(n, heads, dim)
    keys = (x @ weights[f"{name}.k_proj.weight"].T).reshape(n, kv_heads, dim)
    values = (x @ weights[f"{name}.v_proj.weight"].T).reshape(n, kv_heads, dim)
    if config["model_type"] == "gemma3_text":  # it has norms on queries and keys
        queries = rms_norm(queries, weights[f"{name}.q_norm.weight"], config["rms_norm_eps"])
        keys = rms_norm(keys, weights[f"{name}.k_norm.weight"], config["rms_norm_eps"])
    turns = rope["rope_theta"], rope.get("factor", 1.0)
    queries = np.stack([rotate(q, p, *turns) for q, p in zip(queries, positions, strict=True)])
    keys = np.stack([rotate(k, p, *turns) for k, p in zip(keys, positions, strict=True)])
    scalar = dim if config["model_type"] == "gemma" else config["query_pre_attn_scalar"]
    cap = config["attn_logit_softcapping"] if config["model_type"] in ("gemma2", "vaultgemma") else None
    out = np.zeros((n, heads, dim))
    for i in range(n):
        visible = [k for k in range(n) if sees(positions[i], positions[k], config, layer)]
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            scores = np.array([queries[i, head] @ keys[k, kv_head] for k in visible])
            scores = softcap(scores / np.sqrt(scalar), cap)
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            for chance, k in zip(chances, visible, strict=True):
                out[i, head] += chance * values[k, kv_head]
    return out.reshape(n, heads * dim) @ weights[f"{name}.o_proj.weight"].T


def run_layer(x: Array, positions: Sequence[int], weights: Weights, index: int, config: Config) -> Array:
    """One decoder layer; Gemma2 and Gemma 3 have a norm before and after each half, the others one before it."""
    name, eps = f"layers.{index}", config["rms_norm_eps"]

    def norm(h: Array, which: str | None) -> Array:
        return h if which is None else rms_norm(h, weights[f"{name}.{which}.weight"], eps)

    after_attention, before_mlp, after_mlp = {
        "gemma": (None, "post_attention_layernorm", None),
        "vaultgemma": (None, "pre_feedforward_layernorm", None),
        "gemma2": ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        "gemma3_text": ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    }[config["model_type"]]
    x = x + norm(attend(norm(x, "input_layernorm"), positions, weights, index, config), after_attention)
    h = norm(x, before_mlp)
    gated = gelu(h @ weights[f"{name}.mlp.gate_proj.weight"].T) * (h @ weights[f"{name}.mlp.up_proj.weight"].T)
    return x + norm(gated @ weights[f"{name}.mlp.down_proj.weight"].T, after_mlp)


def trace(weights: Weights, config: Config, funnel: Funnel | None, ids: Sequence[int]) -> Trace:
    """Run one row of real tokens; `weights` are those of the base model, `funnel` None is the dense model.

    Args:
        weights: float64 arrays by the names of the base model's state_dict.
        config: the values of its `config.json`.
        funnel: plain values; None runs every layer on the tokens.
        ids: token ids, no padding.
    """
    num_layers, positions = config["num_hidden_layers"], range(len(ids))
    x = np.stack([weights["embed_tokens.weight"][i] for i in ids]) * np.sqrt(config["hidden_size"])
    seen = Trace()
    entry_end, middle_end = (funnel.pool_layer, funnel.recover_layer) if funnel else (num_layers, num_layers)
    for layer in range(entry_end):
        x = run_layer(x, positions, weights, layer, config)
        seen.layers.append(x)
    if funnel:
        dropped = funnel.drop
        x = drop_layers(x, funnel.recovery, weights) if dropped else run_middle(x, weights, config, funnel, seen)
    for layer in range(middle_end, num_layers):
        x = run_layer(x, positions, weights, layer, config)
        seen.layers.append(x)
    seen.hidden = rms_norm(x, weights["norm.weight"], config["rms_norm_eps"])
    return seen


def run_middle(x: Array, weights: Weights, config: Config, funnel: Funnel, seen: Trace) -> Array:
    """Pool, run the middle layers on the slots, and recover the tokens."""
    windows = list_windows(len(x), funnel.stride, funnel.lookahead)
    original = [tokens[-1] for tokens in windows]
    positions = {"original": original, "compact": list(range(len(windows)))}[funnel.slot_positions]
    pooled = np.stack([pool_window(x[tokens], funnel.pooling) for tokens in windows])
    slots = pooled
    for layer in range(funnel.pool_layer, funnel.recover_layer):
        slots = run_layer(slots, positions, weights, layer, config)
        seen.layers.append(slots)
    recovered = []
    for token in range(len(x)):
        slot = slot_read_by(token, funnel.stride, funnel.lookahead)
        ends = pooled[slot], slots[slot]
        if funnel.recovery == "linear":
            recovered.append(recover_by_map(token, x[token], *ends, funnel.stride, weights))
        else:
            recovered.append(recover_token(x[token], *ends, funnel.recovery))
    return np.stack(recovered)


def causal_lm_logits(weights: Weights, config: Config, hidden: Array) -> Array:
    """Logits of every token; a tied head is the embedding."""
    head = weights["embed_tokens.weight"] if config["tie_word_embeddings"] else weights["lm_head.weight"]
    return softcap(hidden @ head.T, config.get("final_logit_softcapping"))


def token_classification_logits(weights: Weights, hidden: Array) -> Array:
    """A score for every label of every token."""
    return hidden @ weights["score.weight"].T + weights["score.bias"]


def sequence_classification_logits(weights: Weights, hidden: Array) -> Array:
    """A score for every label, read at the last token."""
    return hidden[-1] @ weights["score.weight"].T
