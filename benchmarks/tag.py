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
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
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
    "initializer_range": 0.09,  # about 1 / sqrt(hidden_size); Gemma2's 0.02 makes the words' embeddings too small here
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 512,
    "sliding_window": 64,
}


def write_checkpoint(folder: Path, train: Path, seed: int) -> Path:
    """A model with new weights, and a tokenizer trained on the words of the sentences.

    Taggers get words one by one, without spaces before them, so the tokenizer learns them without.
    """
    words = (word for line in train.open() for word in json.loads(line)["tokens"])
    tokenizer = GemmaTokenizer(add_bos_token=True).train_new_from_iterator(words, VOCABULARY, show_progress=False)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    torch.manual_seed(seed)
    Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **DIMENSIONS, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def thin(sentences: Path, most: int) -> None:
    """Leave at most this number of sentences in a file, from all its documents."""
    lines = sentences.read_text().splitlines(keepends=True)
    sentences.write_text("".join(lines[:: -(-len(lines) // most)]))


def most_frequent(train: Path, measured: Path, sentences: int, seed: int) -> float:
    """The accuracy of a tagger without a model: each word gets the tag that it has most often, a new word `noun`.

    Args:
        train: sentences with tags.
        measured: sentences on which to measure.
        sentences: how many of the first are used. The seed draws them.
        seed: seed of the draw.
    """
    lines, counts = train.read_text().splitlines(), defaultdict[str, Counter[str]](Counter)
    for index in np.random.default_rng(seed).permutation(len(lines))[:sentences]:
        for word, tag in _pairs(lines[index]):
            counts[word][tag] += 1
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    right = [best.get(word, "noun") == tag for line in measured.open() for word, tag in _pairs(line)]
    return sum(right) / len(right)


def _pairs(line: str) -> list[tuple[str, str]]:
    """The words of a sentence with their tags."""
    row = json.loads(line)
    return list(zip(row["tokens"], row["tags"], strict=True))


def run(folder: Path, train: Path, measured: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a model and measure it."""
    report = adapt(
        write_checkpoint(folder / "checkpoint", train, seed),
        folder / "adapted",
        data=train,
        funnel=MODELS[name],
        task="token-classification",
        length=128,
        dtype="float32",
        training={
            "part": "all",
            "learning_rate": options.learning_rate,
            "batch_size": options.batch_size,
            "steps": options.steps,
            "seed": seed,
        },
    )
    found = evaluate(folder / "adapted", measured, dense=False, length=128)
    sentences = options.steps * options.batch_size
    return outcome(report, found, PACKAGES) | {"most_frequent": most_frequent(train, measured, sentences, seed)}


def main() -> None:
    """Run what the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sentences of a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, metavar="X", help="largest rate of a schedule")
    parser.add_argument("--sentences", type=int, default=2000, metavar="N", help="most sentences to measure on")
    add_options(parser, MODELS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as texts:
        train, measured = write_tagged(Path(texts))
        thin(measured, options.sentences)
        train_all(options, lambda folder, name, seed: run(folder, train, measured, name, seed, options))


if __name__ == "__main__":
    sys.exit(main())
