"""What weights in 8 and 4 bits cost a real Gemma 3 270M: its loss, and the divergence from the model as it is stored.

    python benchmarks/bits.py --out benchmarks/results/bits.json

Each form of the weights is a bundle, dense and with a fitted funnel, on documents of Brown and State of the Union that
the recovery was not fitted to. ONNX Runtime runs it, and OpenVINO the one in bfloat16; both compute with exact
activations. Losses and divergences are compared with the dense model as it is stored, in eager PyTorch in float32. The
result file is written after each form, and a second run goes on. The first run downloads the weights and the corpora,
and fits the funnel.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from corpora import MEASURED, write_parts
from measure import conditions, record
from quality import fit_missing, fitted
from real_weights import real_checkpoint

from funnel_export import Bundle, Quantization, evaluate, export

FUNNEL = "6:10:2"
MODELS = ("dense", FUNNEL)


class Form(NamedTuple):
    """How weights are stored, and what computes with them."""

    quantization: Quantization | None = None
    dtype: str = "float32"
    target: str = "onnxruntime"


FORMS = {
    "float32": Form(),
    "bfloat16": Form(dtype="bfloat16", target="openvino"),
    "8 bits": Form(Quantization(bits=8)),
    "4 bits, blocks of 64": Form(Quantization(bits=4)),
    "4 bits, blocks of 32": Form(Quantization(bits=4, block_size=32)),
    "4 bits, blocks of 32, asymmetric": Form(Quantization(bits=4, block_size=32, symmetric=False)),
    "4 bits, blocks of 64, head kept": Form(Quantization(bits=4, keep=("head",))),
    "4 bits, blocks of 64, gptq": Form(Quantization(bits=4, method="gptq")),
    "4 bits, blocks of 32, asymmetric, gptq": Form(Quantization(bits=4, block_size=32, symmetric=False, method="gptq")),
}
CALIBRATED = "brown-fit"
"""The texts on which methods that read texts are calibrated, for both corpora: others than the measured ones."""
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "funnel-export")


def exported(model: str, form: Form, calibration: Path, folder: Path) -> Bundle:
    """The bundle of a model in a form, in `folder`."""
    method = None if form.quantization is None else form.quantization.method
    return export(
        real_checkpoint() if model == "dense" else fitted(model),
        folder,
        funnel=None if model == "dense" else "auto",
        task="text-generation",
        dtype=form.dtype,
        quantization=form.quantization,
        data=calibration if method is not None and method.reads_texts else None,
    )


def measure(bundle: Bundle, target: str, texts: Path, tokens: int) -> dict[str, Any]:
    """What `evaluate` says of a bundle, and how many bytes its weights take."""
    report = evaluate(bundle, [texts], target=target, max_tokens=tokens, against=real_checkpoint())
    shown = {"documents", "scored", "measures", "dense", "distance"}
    size = sum(weight.size for weight in bundle.manifest.weights)
    return report.model_dump(mode="json", include=shown) | {"bytes": size, "conditions": conditions(PACKAGES)}


def main() -> None:
    """Measure what the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--tokens", type=int, default=10_000, metavar="N", help="most tokens of each corpus")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        parts = write_parts(Path(folder))
        fit_missing(parts, result, [model for model in options.models if model != "dense"])
        measured = result.setdefault("measured", {})
        for model, form in itertools.product(options.models, options.forms):
            missing = {corpus: f"{model}, {form}, {corpus}" for corpus in MEASURED}
            missing = {corpus: key for corpus, key in missing.items() if key not in measured}
            if missing:
                with tempfile.TemporaryDirectory() as out:
                    bundle = exported(model, FORMS[form], parts[CALIBRATED], Path(out) / "bundle")
                    for corpus, key in missing.items():
                        texts = parts[f"{corpus}-measure"]
                        measured[key] = measure(bundle, FORMS[form].target, texts, options.tokens)
                        record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
