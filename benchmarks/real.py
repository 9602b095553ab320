"""Real weights: Gemma 3 270M exported dense and with a funnel, and compared with Hugging Face.

    make real

It measures the loss of eager Hugging Face and of the exported graph in ONNX Runtime on the same tokens, 100 greedy
tokens of both, parity in float32 and bfloat16, and the largest absolute values after each layer, for the text and for
the tokens of `check` (float16 ends at 65,504). The first run downloads 245 MB. It needs npm and 8 GB of memory. The
last line of stdout is the result.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import conditions
from numpy.typing import NDArray
from real_weights import brown_text, real_checkpoint

FUNNEL = "6:8:2"
TOKENS, ROW = 2000, 250
"""Tokens that the loss is measured on, in rows of so many."""
WRITTEN = 100
LONGEST = 16
"""Tokens of the longest row that `check` compares: 262,144 logits of each are kept."""
PROMPT = "The quick brown fox"


def losses(logits: NDArray[Any], row: NDArray[np.int64]) -> NDArray[Any]:
    """Cross entropy of each next token, [length - 1] in nats, from logits [length, vocabulary]."""
    import torch

    found = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(), torch.from_numpy(row[1:]), reduction="none"
    )
    return found.numpy()


def compare_losses(model: Any, session: Any, rows: list[NDArray[np.int64]]) -> dict[str, float]:
    """Mean losses of eager PyTorch and of a graph, and their largest difference at one token, in nats."""
    import torch

    eager, graph = [], []
    for row in rows:
        with torch.no_grad():
            eager.append(losses(model(torch.from_numpy(row[None])).logits[0].numpy(), row))
        inputs = {"input_ids": row[None], "attention_mask": np.ones_like(row[None])}
        graph.append(losses(session.run(inputs)["logits"][0], row))
    one, other = np.concatenate(eager), np.concatenate(graph)
    return {"eager": one.mean(), "onnxruntime": other.mean(), "largest_difference": float(np.abs(one - other).max())}


def write(session: Any, ids: list[int]) -> list[int]:
    """Greedy tokens after a prompt, each from a pass over the whole text."""
    start = len(ids)
    while len(ids) < start + WRITTEN:
        row = np.array([ids], np.int64)
        logits = session.run({"input_ids": row, "attention_mask": np.ones_like(row)})["logits"]
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids[start:]


def largest_values(bundle: Any, row: NDArray[np.int64]) -> dict[str, float]:
    """The largest absolute value at each place of the model for a text, in float32."""
    import torch

    from funnel_export.bundle.ports import PortKind
    from funnel_export.verify.probe import RangeProbe
    from funnel_export.verify.reference import Eager

    probe = RangeProbe()
    model = Eager(bundle, torch.float32, probe)
    model.run({PortKind.TOKENS: row[None], PortKind.MASK: np.ones_like(row[None])})
    model.close()
    return {found.name: found.largest for found in probe.ranges()}


def main() -> None:
    """Measure everything, and write the result."""
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    from funnel_export import export
    from funnel_export.commands.check import compare
    from funnel_export.targets.registry import get_target

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    checkpoint = real_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = np.array(tokenizer(brown_text()).input_ids[: TOKENS + 1], np.int64)
    rows = [np.concatenate([[tokenizer.bos_token_id], row]) for row in np.split(ids[1:], TOKENS // ROW)]
    prompt = tokenizer(PROMPT).input_ids
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = export(checkpoint, folder / "dense", funnel="none", dtype="float32")
        last = export(checkpoint, folder / "last", funnel="none", dtype="float32", logits="last")
        model = Gemma3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
        result["loss"] = compare_losses(model, get_target("onnxruntime").load(bundle.model), rows)
        text = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=WRITTEN, eos_token_id=None)
        eager, graph = text[0, len(prompt) :].tolist(), write(get_target("onnxruntime").load(last.model), prompt)
        result["greedy"] = {"tokens": WRITTEN, "equal": sum(x == y for x, y in zip(eager, graph, strict=True))}
        del model
        values = largest_values(bundle, rows[0])
        result["largest_values"] = values
        result["parity"] = {}
        for kind, funnel in (("dense", "none"), (FUNNEL, FUNNEL)):
            for dtype in ("float32", "bfloat16"):
                made = export(checkpoint, folder / f"{kind}-{dtype}".replace(":", "-"), funnel=funnel, dtype=dtype)
                report = compare(made, max_length=LONGEST)
                result["parity"][f"{kind} {dtype}"] = {
                    "passed": report.passed,
                    "floor_rms": report.floor.rms_rel,
                    "largest_values": {found.name: found.largest for found in report.ranges},
                    "rms_of_limit": {
                        target.name: max(case.metrics.rms_rel for case in target.cases) / report.limit_rms_rel
                        for target in report.targets
                        if target.cases
                    },
                }
    packages = ("torch", "transformers", "onnxruntime", "openvino", "gguf", "funnel-export")
    result["conditions"] = conditions(packages)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
