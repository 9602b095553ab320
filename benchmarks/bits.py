"""What weights in 8 and 4 bits cost a real Gemma 3 270M: its loss, and the divergence from the model as it is stored.

    python benchmarks/bits.py --out benchmarks/results/bits.json

Each form of the weights is a bundle that ONNX Runtime runs, on documents of Brown and State of the Union. The result
file is written after each form, and a second run goes on. The first run downloads the weights and the corpora.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from corpora import MEASURED, write_parts
from measure import conditions, record
from real_weights import real_checkpoint

from funnel_export import Quantization, evaluate, export

FORMS = {
    "float32": None,
    "8 bits": Quantization(bits=8),
    "4 bits, blocks of 64": Quantization(bits=4),
    "4 bits, blocks of 32": Quantization(bits=4, block_size=32),
    "4 bits, blocks of 32, asymmetric": Quantization(bits=4, block_size=32, symmetric=False),
    "4 bits, blocks of 64, head kept": Quantization(bits=4, keep=("head",)),
}
PACKAGES = ("torch", "transformers", "onnxruntime", "funnel-export")


def measure(quantization: Quantization | None, texts: Path, tokens: int) -> dict[str, Any]:
    """What `evaluate` says of a form, and how many bytes its weights take."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(
            real_checkpoint(),
            Path(folder) / "bundle",
            funnel=None,
            task="text-generation",
            dtype="float32",
            quantization=quantization,
        )
        report = evaluate(bundle, [texts], target="onnxruntime", max_tokens=tokens, against=real_checkpoint())
    shown = {"documents", "scored", "measures", "dense", "distance", "seconds"}
    size = sum(weight.size for weight in bundle.manifest.weights)
    return report.model_dump(mode="json", include=shown) | {"bytes": size, "conditions": conditions(PACKAGES)}


def main() -> None:
    """Measure what the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--tokens", type=int, default=10_000, metavar="N", help="most tokens of each corpus")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        parts = write_parts(Path(folder))
        for corpus in MEASURED:
            for form in options.forms:
                if form not in result.setdefault(corpus, {}):
                    result[corpus][form] = measure(FORMS[form], parts[f"{corpus}-measure"], options.tokens)
                    record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
