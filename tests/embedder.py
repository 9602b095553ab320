"""What sentence-transformers saves beside a model, with EmbeddingGemma's modules: mean, dense layers, unit length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

LAYERS = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
DENSE = ("2_Dense", "3_Dense")
INNER = 96
"""Width between the dense layers."""
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
LONGEST = 48
"""Largest number of tokens; further ones are cut off."""
FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    *(f"{folder}/{name}" for folder in DENSE for name in ("config.json", "model.safetensors")),
)
"""What a bundle copies."""


def save_modules(folder: Path, width: int) -> Path:
    """Write them into a checkpoint whose hidden states have this width; the weights are seeded."""
    rng = np.random.default_rng(0)
    paths = ["" if number == 0 else f"{number}_{kind}" for number, kind in enumerate(LAYERS)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(LAYERS, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir()
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    settings = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"} | settings)
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    _write(folder / "1_Pooling" / "config.json", pooling)
    for path, (into, out) in zip(DENSE, ((width, INNER), (INNER, width)), strict=True):
        identity = "torch.nn.modules.linear.Identity"
        shape = {"in_features": into, "out_features": out, "bias": False, "activation_function": identity}
        _write(folder / path / "config.json", shape)
        weight = rng.normal(scale=into**-0.5, size=(out, into)).astype(np.float32)
        save_file({"linear.weight": weight}, folder / path / "model.safetensors")
    return folder


def embed(folder: Path, rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The embeddings [text, width] that the modules in a folder give, from each text's hidden states [token, width]."""
    states = np.stack([row.mean(axis=0) for row in rows])
    for path in DENSE:
        states = states @ load_file(folder / path / "model.safetensors")["linear.weight"].astype(np.float64).T
    return states / np.linalg.norm(states, axis=1, keepdims=True)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))
