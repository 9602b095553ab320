"""A tagger with and without a funnel: small Gemma2 models, trained from new weights to tag the words of Brown.

    python benchmarks/tag.py --out benchmarks/results/tag.json

Hugging Face has no token classifier of Gemma 3, and no trained Gemma2 can be had without its license, so these models
are small and know nothing before. Each is trained on the same sentences in as many steps: dense, with a funnel over
half of its layers, and with such a funnel that has lookahead. Three seeds each, of the weights and of the order,
measured on other documents.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from corpora import write_tagged
from heads import add_options, outcome, train_all
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer

from funnel_export import FunnelSpec, adapt, evaluate

MODELS = {
    "dense": "none",
    "2:5:2": FunnelSpec.parse("2:5:2"),
    "2:5:2, lookahead": FunnelSpec.parse("2:5:2", lookahead=True),
    "2:5:4": FunnelSpec.parse("2:5:4"),
    "2:5:4, lookahead": FunnelSpec.parse("2:5:4", lookahead=True),
    "2:5:drop": FunnelSpec.parse("2:5:drop"),
}
PACKAGES = ("torch", "transformers", "funnel-export")
VOCABULARY = 8192
DIMENSIONS = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 512,
    "sliding_window": 64,
}


def write_checkpoint(folder: Path, train: Path, seed: int) -> Path:
    """A model with new weights, and a tokenizer trained on the sentences."""
    words = (f" {word}" for line in train.open() for word in json.loads(line)["tokens"])
    tokenizer = GemmaTokenizer(add_bos_token=True).train_new_from_iterator(words, VOCABULARY, show_progress=False)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    torch.manual_seed(seed)
    Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **DIMENSIONS, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train a model and measure it."""
    train, measured = write_tagged(folder)
    report = adapt(
        write_checkpoint(folder / "checkpoint", train, seed),
        folder / "adapted",
        data=train,
        funnel=MODELS[name],
        task="token-classification",
        length=128,
        dtype="float32",
        training={"part": "all", "learning_rate": 1e-3, "batch_size": 32, "steps": steps, "seed": seed},
    )
    found = evaluate(folder / "adapted", measured, dense=False, length=128)
    return outcome(report, found, PACKAGES)


def main() -> None:
    """Run what the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, metavar="N", help="of 32 sentences each")
    add_options(parser, MODELS)
    options = parser.parse_args()
    train_all(options, lambda folder, name, seed: run(folder, name, seed, options.steps))


if __name__ == "__main__":
    sys.exit(main())
