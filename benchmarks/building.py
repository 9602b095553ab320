"""Builds that `compile.py` runs, each part of them in a process of its own."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory import Watch

from funnel_export import FunnelSpec, check, compile_bundle, export
from funnel_export.bundle.load import Bundle
from funnel_export.errors import FunnelExportError, SpecError, TargetUnavailableError
from funnel_export.spec.choices import Dtype, Task
from funnel_export.targets.base import availability_of
from funnel_export.targets.registry import get_target

RTX, WORKER = "tensorrt-rtx", "funnel_export.targets.tensorrt.worker"
TARGETS = (RTX, "onnxruntime", "openvino")
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 48,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "num_labels": 3,
}
"""Wide weights, small caps and a short window: an engine that leaves one of them out is seen."""
KINDS = {
    "dense": None,
    "S=2": FunnelSpec(pool_layer=2, recover_layer=5, stride=2),
    "S=4": FunnelSpec(pool_layer=2, recover_layer=5, stride=4),
    "lookahead, S=2": FunnelSpec(pool_layer=2, recover_layer=5, stride=2, lookahead=True),
}
CLASSES = {
    Task.FEATURE_EXTRACTION: "Gemma2Model",
    Task.TEXT_GENERATION: "Gemma2ForCausalLM",
    Task.TEXT_CLASSIFICATION: "Gemma2ForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "Gemma2ForTokenClassification",
}
LONGEST = 16
"""Tokens of the longest row that is compared: beyond the sliding window, and several windows of the funnel."""


SMALL = """
import json, sys
from pathlib import Path
from building import build_small
from funnel_export.spec.choices import Task
print(json.dumps(build_small(Path(sys.argv[1]), Task(sys.argv[2]), sys.argv[3], sys.argv[4].split(","))))
"""
"""A program that prints what `build_small` finds: folder, task, kind of funnel, targets with commas between."""


def make_checkpoint(folder: Path, task: Task, dtype: Dtype) -> None:
    """Write a small Gemma2 of a task, always the same, with norm weights and biases away from zero."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[task])(transformers.Gemma2Config(**DIMENSIONS))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def why_not(err: FunnelExportError) -> dict[str, str]:
    """What became of something that was not built: `refused` as such, `unavailable` here, or else `failed`."""
    kinds = {SpecError: "refused", TargetUnavailableError: "unavailable"}
    return {"state": kinds.get(type(err), "failed"), "why": str(err)}


def build(bundle: Bundle, target: str, graph: str | None = None) -> dict[str, Any]:
    """Compile a bundle, or one of its graphs; what it took, or why there is no engine."""
    start = time.perf_counter()
    with Watch(WORKER) as watch:
        try:
            engine = compile_bundle(bundle, target, graph=graph, progress=watch.step)
        except FunnelExportError as err:
            return {**why_not(err), "seconds": round(time.perf_counter() - start, 2), **watch.peak()}
    seconds, facts = time.perf_counter() - start, engine.manifest.facts
    products = {"matrix_products": facts["matrix_products"]} if "matrix_products" in facts else {}
    return {
        "state": "built",
        "seconds": round(seconds, 2),
        "build_seconds": facts["build_seconds"],
        "bytes": sum(record.size for record in engine.manifest.files),
        "warnings": facts.get("warnings", []),
        **products,
        **watch.peak(),
        "course": watch.course(),
    }


def build_small(folder: Path, task: Task, kind: str, targets: Sequence[str]) -> dict[str, Any]:
    """A small Gemma2 in each dtype, compiled for each target."""
    import torch

    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    runs = [name for name in targets if availability_of(get_target(name)).available]  # imports them before any build
    results: dict[str, Any] = {}
    for dtype in Dtype:
        checkpoint = folder / f"{dtype}-checkpoint"
        make_checkpoint(checkpoint, task, dtype)
        try:
            bundle = export(checkpoint, folder / dtype, funnel=KINDS[kind], task=task)
        except FunnelExportError as err:
            results[dtype] = dict.fromkeys(targets, why_not(err))
            continue
        found = {target: build(bundle, target) for target in targets}
        for result in found.values():
            result.pop("course", None)
        compare(bundle, found, runs)
        results[dtype] = found
    return results


def compare(bundle: Bundle, found: dict[str, dict[str, Any]], runs: Sequence[str]) -> None:
    """Compare the engines of `runs` with eager PyTorch; adds `parity` to what was found of each."""
    built = [target for target in runs if found[target]["state"] == "built"]
    if not built:
        return
    try:
        report = check(bundle, targets=built, max_length=LONGEST)
    except FunnelExportError as err:
        for target in built:
            found[target]["parity"] = {"passed": False, "error": str(err)}
        return
    for result in report.targets:
        if result.engine is not None:
            found[result.target]["parity"] = {
                "passed": result.passed,
                "error": result.error,
                "rms_rel": max((case.metrics.rms_rel for case in result.cases), default=None),
                "limit_rms_rel": report.limit_rms_rel,
                "cases": len(result.cases),
                "lengths_left_out": report.lengths_left_out,
            }
