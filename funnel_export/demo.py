"""The main job on a small model that is made here: no download, no GPU."""

import platform
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from tabulate import tabulate

from funnel_export.atomic import write_text
from funnel_export.bundle import Bundle, load_bundle
from funnel_export.checking import check
from funnel_export.config import FunnelSpec
from funnel_export.errors import BundleError
from funnel_export.pipeline import export
from funnel_export.progress import Progress
from funnel_export.targets import get_target
from funnel_export.verify.eager import Eager, without_progress_bars
from funnel_export.verify.latency import Latency, measure_latency
from funnel_export.verify.operations import predicted_ratio
from funnel_export.verify.parity import ParityReport
from funnel_export.verify.summary import describe_bundle, describe_parity

MARK = "demo.json"
FUNNEL = FunnelSpec(pool_layer=3, recover_layer=9, stride=2)
LENGTHS = (256, 512, 1024)


class Row(BaseModel):
    """Dense and funnel on one runtime at one length, batch 1."""

    runtime: str
    length: int
    dense: Latency
    funnel: Latency
    ratio: float
    predicted: float


class DemoReport(BaseModel):
    """What the demo measured."""

    conditions: dict[str, str]
    parity: ParityReport
    latency: list[Row]


def run_demo(out: Path, *, lengths: tuple[int, ...] = LENGTHS, rounds: int = 5, progress: Progress) -> DemoReport:
    """Make a small Gemma2, export it dense and with a funnel, check both, time them side by side.

    Leaves `out/checkpoint`, `out/dense`, `out/funnel` and `out/demo.json`.

    Raises:
        BundleError: if `out` holds something else than an earlier demo.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise BundleError("the output folder holds something else", got=out, wanted="a new folder", hint="another name")
    write_text(out / MARK, "{}\n")
    progress("making a small Gemma2")
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # new files: the bundles' hard links keep the old ones
    make_checkpoint(out / "checkpoint")
    for name, funnel in (("dense", None), ("funnel", FUNNEL)):
        export(out / "checkpoint", out / name, funnel=funnel, progress=partial(_prefixed, progress, name))
    parity = check(out / "funnel", progress=partial(_prefixed, progress, "parity"))
    rows = list(_time(load_bundle(out / "dense"), load_bundle(out / "funnel"), parity, lengths, rounds, progress))
    report = DemoReport(conditions=_conditions(parity), parity=parity, latency=rows)
    write_text(out / MARK, report.model_dump_json(indent=2) + "\n")
    return report


def _prefixed(progress: Progress, prefix: str, step: str, done: float | None = None, /) -> None:
    shares = () if done is None else (done,)
    progress(f"{prefix}: {step}", *shares)


def describe_latency(report: DemoReport) -> str:
    """The latencies as a table."""
    rows = [
        (
            row.runtime,
            row.length,
            f"{row.dense.median_ms:.0f}",
            f"{row.funnel.median_ms:.0f}",
            f"{row.ratio:.2f}",
            f"{row.predicted:.2f}",
        )
        for row in report.latency
    ]
    headers = ("runtime", "length", "dense ms", "funnel ms", "funnel/dense", "predicted")
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *("right",) * 5))


def describe_demo(out: Path, report: DemoReport) -> str:
    """The demo for a person to read."""
    rounds, threads = report.latency[0].funnel.rounds, report.conditions["threads"]
    title = f"latency in float32, batch 1, {threads} threads, median of {rounds} interleaved calls"
    return "\n\n".join(
        (
            describe_bundle(load_bundle(out / "funnel")),
            "parity with eager PyTorch\n" + describe_parity(report.parity),
            f"{title}\n{describe_latency(report)}",
            f"The bundles are {out / 'dense'} and {out / 'funnel'}; look into one with `funnel-export inspect`.",
        )
    )


def _conditions(parity: ParityReport) -> dict[str, str]:
    """What the latencies depend on."""
    packages = ("torch", "transformers", *(target.target for target in parity.targets))
    return {
        "device": next((t.device for t in parity.targets if t.target == "openvino"), platform.processor()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def make_checkpoint(folder: Path) -> None:
    """A Gemma2 with 12 layers and random weights, and a tokenizer trained on Python's own documentation.

    Weights are wide and caps small, so that softcaps and sliding windows matter; the text it would write does not.
    """
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = make_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=128,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    with without_progress_bars():
        Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> Any:
    """A Gemma tokenizer of 4096 tokens, trained on the documentation that comes with Python.

    Its files name Gemma's class, as real checkpoints do, and so transformers 4 reads them too. For a tokenizer without
    a class of its own transformers 5 writes `TokenizersBackend`, which version 4 does not know.
    """
    from pydoc_data.topics import topics

    from transformers import GemmaTokenizer

    words = (re.findall(r"\s*\S+", text) for text in topics.values())
    return GemmaTokenizer(add_bos_token=True).train_new_from_iterator(words, 4096, show_progress=False)


def _text(bundle: Bundle, length: int) -> dict[str, Any]:
    """The first tokens of Python's documentation."""
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    text = "\n".join(topics[name] for name in sorted(topics))[: 16 * length]
    ids = AutoTokenizer.from_pretrained(bundle.path)(text)["input_ids"][:length]
    tokens = np.array([ids], dtype=np.int64)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def _time(
    dense: Bundle,
    funnel: Bundle,
    parity: ParityReport,
    lengths: tuple[int, ...],
    rounds: int,
    progress: Progress,
) -> Iterator[Row]:
    runners: dict[str, Callable[[Bundle], Any]] = {"eager PyTorch": lambda bundle: Eager(bundle, torch.float32)}
    for result in parity.targets:  # no parity, no number
        if result.passed:
            runners[result.target] = get_target(result.target).load
    for name, load in runners.items():
        models = {"dense": load(dense), "funnel": load(funnel)}
        for length in lengths:
            progress(f"latency: {name}, length {length}")
            inputs = _text(funnel, length)
            calls = {key: partial(model.run, inputs) for key, model in models.items()}
            with torch.no_grad():
                times = measure_latency(calls, rounds=rounds)
            yield Row(
                runtime=name,
                length=length,
                dense=times["dense"],
                funnel=times["funnel"],
                ratio=times["funnel"].median_ms / times["dense"].median_ms,
                predicted=predicted_ratio(funnel.architecture, funnel.manifest.task, funnel.manifest.spec, length),
            )
