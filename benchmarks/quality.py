"""What funnels and dropped layers cost a real Gemma 3 270M, as they are and with a fitted recovery.

    python benchmarks/quality.py --out benchmarks/results/quality.json

Each funnel is measured on documents that nothing was fitted to: as it is, with recovery `delta`, and after
`funnel-export fit` on other documents of the same corpora. Beside each funnel stand layers that are dropped, at equal
cost of the layers. The result file is written after each model, and a second run goes on. The first run downloads the
weights and the corpora. The last line of stdout is the result.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from corpora import write_parts
from measure import conditions, record
from real_weights import cache, real_checkpoint

from funnel_export import evaluate, fit
from funnel_export.spec.funnel import FunnelSpec

FUNNELS = ("6:10:2", "8:10:drop", "6:8:2", "7:8:drop", "6:10:4", "7:10:drop", "6:14:2", "6:10:drop")
"""Each funnel before the dropped layers of equal cost: two layers' work, one, three, four."""
LENGTH = 512
TOKENS = {"brown": 8_000, "sotu": 4_000}
"""Tokens on which models are measured; `--tokens` multiplies them."""
FITTED = 30_000
"""Tokens that the recovery is fitted to, held-out ones included."""
PACKAGES = ("torch", "transformers", "funnel-export")


def measure(model: Path, funnel: str, recovery: str, texts: Path, tokens: int) -> dict[str, Any]:
    """What `evaluate` says of a model, without the parts that tables do not show."""
    spec = FunnelSpec.parse(funnel, recovery=recovery)
    report = evaluate(model, [texts], funnel=spec, dtype="bfloat16", length=LENGTH, max_tokens=tokens)
    shown = {"funnel", "documents", "scored", "measures", "dense", "distance", "by_phase", "seconds"}
    return report.model_dump(mode="json", include=shown)


def main() -> None:
    """Fit, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--tokens", type=int, default=1, metavar="N", help="measure on N times as many tokens")
    options = parser.parse_args()
    out, times = options.out, options.tokens
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    result |= {"length": LENGTH, "conditions": conditions(PACKAGES)}
    checkpoint, fits = real_checkpoint(), cache() / "fitted"
    with tempfile.TemporaryDirectory() as name:
        parts = write_parts(Path(name))
        for funnel in FUNNELS:
            fitted = fits / funnel.replace(":", "-")
            if not fitted.exists():
                texts = [parts["brown-fit"], parts["sotu-fit"]]
                start = time.perf_counter()
                fit(checkpoint, fitted, funnel=funnel, data=texts, tokens=FITTED, length=LENGTH)
                result.setdefault("fit_seconds", {})[funnel] = time.perf_counter() - start
            for recovery, model in (("linear", fitted), ("delta", checkpoint)):
                for corpus, tokens in TOKENS.items():
                    key = f"{funnel}, {recovery}, {corpus}"
                    if key not in result.setdefault("measured", {}):
                        found = measure(model, funnel, recovery, parts[f"{corpus}-measure"], times * tokens)
                        result["measured"][key] = found
                        record(result, out)
    record(result, out)


if __name__ == "__main__":
    sys.exit(main())
