"""Make what the other environment reads: a bundle of each task, with a funnel and dense, and what it must compute.

Run in the main environment: `PYTHONPATH=tests python tests/interop/make_bundles.py FOLDER`. Into FOLDER go, for each
NAME such as `text-generation-funnel`, the bundle NAME/ and NAME.npz with texts, tokens and expected outputs.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cases import EMBEDDER, HALF, QUANTIZED, UNNAMED
from embedder import embed, save_modules
from exported import Recipe
from models import save_tiny_checkpoint
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from funnel_export import Bundle, FunnelSpec, Quantization, apply_funnel, export
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.commands.demo import make_tokenizer
from funnel_export.spec.choices import Task
from funnel_export.targets.registry import get_target
from funnel_export.verify.reference import Eager

TEXTS = (
    "The with statement wraps the execution of a block with methods defined by a context manager.",
    "An iterator",
    "A class definition defines a class object.",
    "Names refer to objects.",
)
LABELS = {0: "ACTION", 1: "OBJECT", 2: "OTHER"}
FUNNEL = FunnelSpec.parse("1:3:2")
AHEAD = FunnelSpec.parse("2:6:2", lookahead=True)
GEMMA3_FUNNELS = {
    Task.FEATURE_EXTRACTION: AHEAD,
    Task.TEXT_GENERATION: FunnelSpec.parse("2:6:2"),
    Task.TEXT_CLASSIFICATION: AHEAD,
}
NEW_TOKENS = 8
SPECIAL = ["<tool>", "<image>"]


def make_checkpoint(folder: Path, task: Task, tokenizer: Any, family: str = "gemma2", **overrides: Any) -> Path:
    """A tiny checkpoint with named labels and a tokenizer."""
    # A tied head mostly repeats the last token, whatever the layers compute.
    save_tiny_checkpoint(
        folder,
        Recipe(task=task, family=family).cls,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
        **overrides,
    )
    tokenizer.save_pretrained(folder)
    return folder


def name_rope_as_version_4(config: Path) -> None:
    """Give a Gemma 3's RoPE the names of transformers 4, which ignores those of version 5; both read them."""
    values = json.loads(config.read_text())
    rope = values.pop("rope_parameters")
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    values |= {"rope_theta": full.pop("rope_theta"), "rope_scaling": full}
    values["rope_local_base_freq"] = sliding["rope_theta"]
    config.write_text(json.dumps(values))


def make_gemma3(folder: Path, task: Task, tokenizer: Any) -> Path:
    """A tiny Gemma 3; for feature extraction one that sees both sides, with the modules of sentence-transformers."""
    embeds = task is Task.FEATURE_EXTRACTION
    make_checkpoint(folder, task, tokenizer, "gemma3_text", use_bidirectional_attention=embeds)
    name_rope_as_version_4(folder / "config.json")
    return save_modules(folder, json.loads((folder / "config.json").read_text())["hidden_size"]) if embeds else folder


def unnamed(tokenizer: Any) -> Any:
    """The same tokens from a tokenizer without a class of its own, with special tokens of its own."""
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, padding_side="left", extra_special_tokens=SPECIAL, **special
    )


def strange_texts() -> list[str]:
    """Words, spaces, special tokens and characters of any script in any order."""
    rng = np.random.default_rng(0)
    known = [*SPECIAL, "<bos>", "<eos>", "<unk>", " ", "  ", "\n", "\t", "▁", *" ".join(TEXTS).split()]
    characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]  # no surrogates
    pieces = lambda: [*rng.choice(known, 4), *rng.choice(characters, 4), *map(chr, rng.integers(32, 256, 4))]  # noqa: E731
    return ["".join(rng.permutation(pieces())) for _ in range(500)]


def generate(bundle: Bundle, row: NDArray[np.int64]) -> list[int]:
    """What PyTorch writes after a row, greedily and with its cache."""
    cls = bundle.family.model_class(bundle.spec.task)
    model = cls.from_pretrained(bundle.path, dtype=torch.float64, attn_implementation="eager")
    if bundle.spec.funnel is not None:
        apply_funnel(model.eval(), bundle.spec.funnel)
    written = model.generate(torch.from_numpy(row[None]), min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    return written[0, len(row) :].tolist()


def reference(bundle: Bundle) -> dict[str, Any]:
    """Tokens padded on both sides, and their outputs.

    `expected` is eager PyTorch's in float64, each row alone and unpadded, rows one after the other; `onnxruntime-SIDE`
    is the graph's on the padded batch, with the sessions of `check`.
    """
    found: dict[str, Any] = {"texts": np.array(TEXTS), "task": str(bundle.spec.task)}
    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    found["tokens"] = np.array(json.dumps({text: tokenizer(text)["input_ids"] for text in strange_texts()}))
    session = get_target("onnxruntime").load(bundle.model)
    output = bundle.model.output.name
    for side in ("left", "right"):
        batch = tokenizer(list(TEXTS), padding=True, padding_side=side, return_tensors="np")
        ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        values = {PortKind.TOKENS: ids, PortKind.MASK: mask}
        inputs = feed(bundle.model.inputs, values)
        found |= {f"{name}-{side}": value for name, value in inputs.items()}
        found[f"onnxruntime-{side}"] = session.run(inputs)[output]
    found["expected"] = Eager(bundle, torch.float64).run(values)[output]
    if bundle.spec.task is Task.TEXT_GENERATION and bundle.spec.quantization is None:
        found["written"] = np.array([generate(bundle, np.array(tokenizer(text)["input_ids"])) for text in TEXTS])
    return found


def export_both(checkpoint: Path, out: Path, task: Task, funnel: FunnelSpec) -> None:
    """Write bundles with a funnel and without, named after `out`, and what each must compute.

    Weights are copied, since onnx.checker refuses hard links.
    """
    for kind, spec in (("funnel", funnel), ("dense", None)):
        write(
            export(checkpoint, out.with_name(f"{out.name}-{kind}"), funnel=spec, task=task, weights="copy"), checkpoint
        )


def write(bundle: Bundle, checkpoint: Path) -> None:
    """Write what a bundle must compute beside it; of an embedder, the embeddings too."""
    found = reference(bundle)
    if (checkpoint / "modules.json").exists():
        lengths = found["attention_mask-left"].sum(axis=1)
        found["embeddings"] = embed(checkpoint, np.split(found["expected"], np.cumsum(lengths)[:-1]))
    np.savez(bundle.path.with_suffix(".npz"), **found)


def main(out: Path) -> None:
    """Write all bundles and their references; an earlier run's are replaced."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tokenizer = make_tokenizer()
    for task in (task for task in Task if not task.has_past):
        with TemporaryDirectory(dir=out) as folder:
            checkpoint = make_checkpoint(Path(folder), task, tokenizer)
            export_both(checkpoint, out / task, task, FUNNEL)
            if task is Task.TEXT_GENERATION:
                linked = export(checkpoint, out / f"{task}-linked", funnel=FUNNEL, task=task, weights="link")
                os.link(linked.path / "model.safetensors", out / "linked.safetensors")  # as the checkpoint's would be
    for task, funnel in GEMMA3_FUNNELS.items():
        with TemporaryDirectory(dir=out) as folder:
            export_both(make_gemma3(Path(folder), task, tokenizer), out / f"gemma3-{task}", task, funnel)
            if task is Task.FEATURE_EXTRACTION:
                shutil.copytree(folder, out / EMBEDDER)
                export(folder, out / HALF, funnel=None, dtype="float16", weights="copy")
    with TemporaryDirectory(dir=out) as folder:  # blocks of 64 divide the hidden size
        checkpoint = make_checkpoint(Path(folder), Task.TEXT_GENERATION, tokenizer, hidden_size=64)
        for name in QUANTIZED:
            bits = Quantization(bits=int(name.removeprefix("text-generation-int")))
            made = export(checkpoint, out / name, funnel=FUNNEL, task="text-generation", quantization=bits)
            write(made, checkpoint)
    with TemporaryDirectory(dir=out) as folder:
        checkpoint = make_checkpoint(Path(folder), Task.FEATURE_EXTRACTION, unnamed(tokenizer))
        write(export(checkpoint, out / UNNAMED, funnel=FUNNEL, weights="copy"), checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
