"""Real weights: Gemma 3 270M exported dense and with a funnel, and compared with Hugging Face.

    make real

It measures the loss of eager Hugging Face and of the exported graph in ONNX Runtime on the same tokens; 100 greedy
tokens of Hugging Face's `generate` and of the graphs with a cache in ONNX Runtime and OpenVINO; parity in float32 and
bfloat16, single pass and with a cache, of the graphs and of engines; the largest absolute values after each layer, for
the text and for the tokens of `check` (float16 ends at 65,504); and latencies. The first run downloads 245 MB. It needs
npm and 10 GB of memory. A run that was interrupted goes on where it was. The last line of stdout is the result.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from corpora import brown_text
from measure import conditions
from numpy.typing import NDArray
from real_weights import real_checkpoint

from funnel_export.verify.parity_report import ParityReport

FUNNEL = "6:8:2"
TOKENS, ROW = 2000, 250
"""Number of tokens on which the loss is measured, and of each row."""
WRITTEN = 100
LENGTH = 16
"""Tokens of the longest row that `check` compares: 262,144 logits of each are kept."""
TIMED = 256
"""Tokens of the batch that is timed."""
KINDS = (
    ("dense", "none", "text-generation"),
    (FUNNEL, FUNNEL, "text-generation"),
    (f"{FUNNEL}, with a cache", FUNNEL, "text-generation-with-past"),
)
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


def write(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """Greedy tokens after a prompt, and the seconds that they took."""
    import torch

    start = time.perf_counter()
    text = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=WRITTEN, eos_token_id=None)
    return text[0, len(prompt) :].tolist(), time.perf_counter() - start


def compare_texts(reference: Any, folder: Path, prompt: list[int]) -> dict[str, Any]:
    """Greedy tokens of Hugging Face and of the dense graphs with a cache: how many are equal, and tokens a second."""
    from funnel_export import FunnelModelForCausalLM

    wanted, seconds = write(reference, prompt)
    result: dict[str, Any] = {"eager": {"tokens_per_s": WRITTEN / seconds}}
    for target in ("onnxruntime", "openvino"):
        model = FunnelModelForCausalLM.from_pretrained(folder, target=target)
        found, seconds = write(model, prompt)
        model.close()
        equal = sum(one == other for one, other in zip(wanted, found, strict=True))
        result[target] = {"tokens_per_s": WRITTEN / seconds, "equal": equal}
    return result


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

    from funnel_export import bench, compile_bundle, export
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
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    result |= {"tokens": TOKENS, "written": WRITTEN, "funnel": FUNNEL, "length": LENGTH}
    result.setdefault("parity", {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "largest_values" not in result:
            bundle = export(checkpoint, folder / "dense", funnel="none", task="text-generation", dtype="float32")
            past = export(checkpoint, folder / "past", funnel="none", dtype="float32", task="text-generation-with-past")
            options = {"dtype": torch.float32, "attn_implementation": "eager"}
            model = Gemma3ForCausalLM.from_pretrained(checkpoint, **options).eval()
            result["loss"] = compare_losses(model, get_target("onnxruntime").load(bundle.model), rows)
            result["greedy"] = compare_texts(model, past.path, prompt)
            del model
            result["largest_values"] = largest_values(bundle, rows[0])
            save(result, out)
        for kind, funnel, task in KINDS:
            for dtype in ("float32", "bfloat16"):
                if f"{kind}, {dtype}" not in result["parity"]:
                    place = folder / "parity"
                    made = export(checkpoint, place, funnel=funnel, dtype=dtype, task=task, overwrite=True)
                    for role in made.graphs:
                        compile_bundle(made, "openvino", graph=role)
                    result["parity"][f"{kind}, {dtype}"] = summary(compare(made, lengths=[LENGTH], max_length=LENGTH))
                    save(result, out)
        if "latency" not in result:
            made = export(checkpoint, folder / "timed", funnel=FUNNEL, dtype="float32")
            timed = bench(made, pytorch=("eager",), lengths=(TIMED,), max_length=LENGTH)
            result["latency"] = [row.model_dump(mode="json") for row in timed.rows]
    packages = ("torch", "transformers", "onnxruntime", "openvino", "funnel-export")
    result["conditions"] = conditions(packages)
    save(result, out)
    print(json.dumps(result))


def summary(report: ParityReport) -> dict[str, Any]:
    """What a check found: the floor, the largest values, and errors as shares of their limits."""
    limits = {"max": ("max_rel", report.limit_max_rel), "rms": ("rms_rel", report.limit_rms_rel)}
    return {
        "passed": {target.name: target.passed for target in report.targets},
        "floor": report.floor.model_dump(),
        "largest_values": {found.name: found.largest for found in report.ranges},
        "of_limit": {
            target.name: {
                name: max(getattr(case.metrics, field) for case in target.cases) / limit
                for name, (field, limit) in limits.items()
            }
            for target in report.targets
            if target.cases
        },
        "errors": [target.error for target in report.targets if target.error],
    }


def save(result: dict[str, Any], out: Path) -> None:
    """Write what there is: a later run goes on from there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
