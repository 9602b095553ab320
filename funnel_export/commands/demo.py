"""The demo: export, compile, check, time and run a small generated model, without a download or a GPU."""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ValidationError

from funnel_export.bundle.manifest import REPORTS
from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, SINGLE
from funnel_export.commands.bench import bench
from funnel_export.commands.check import check
from funnel_export.commands.compile import compile_bundle
from funnel_export.commands.export import export
from funnel_export.commands.generate import Generated, generate
from funnel_export.commands.inspect import inspect
from funnel_export.errors import BundleError
from funnel_export.families.gemma2 import GEMMA2
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.progress import Progress
from funnel_export.report.text import describe_latency, describe_parity
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.atomic import replace_folder, write_text
from funnel_export.system.files import LARGEST_JSON, read_bytes
from funnel_export.system.room import no_room
from funnel_export.system.site import elsewhere
from funnel_export.targets.base import availability_of
from funnel_export.targets.registry import get_target, target_names
from funnel_export.verify.parity_report import ParityReport
from funnel_export.verify.reference import without_progress_bars

MARK = "demo.json"
STARTED = '{"funnel-export demo": "not finished"}\n'
"""Content of `demo.json` until the demo has a result."""
FUNNEL = FunnelSpec(pool_layer=3, recover_layer=9, stride=2)
LENGTHS = (512,)
PROMPT, NEW_TOKENS = "The import statement", 32
CHECKED = 48
"""Longest rows of the parity check of the graphs with a cache, in tokens."""


class Demo(NamedTuple):
    """What the demo found."""

    report: LatencyReport
    cached: ParityReport
    """The parity of the graphs with a cache."""
    text: Generated

    @property
    def passed(self) -> bool:
        """Whether everything agrees with eager PyTorch."""
        return self.report.passed and self.cached.passed


def run_demo(out: Path, *, lengths: tuple[int, ...] = LENGTHS, rounds: int = 6, progress: Progress) -> Demo:
    """Make a small Gemma2, export it dense and with a funnel, compile it for all available targets, check and time it.

    Then export the funnel with a cache, check it, and generate a text. Writes `out/checkpoint`, `out/dense`,
    `out/funnel`, `out/writer` and the report `out/demo.json`.

    Returns:
        The latency report and the generated text.

    Raises:
        BundleError: if `out` holds anything but an earlier demo or cannot be written, or if the disk is full.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_demo(out))):
        raise BundleError(
            "the output folder holds something else", got=out, wanted="a new folder", hint="use another name"
        )
    _mark(out, STARTED)
    progress("making a small Gemma2")
    with replace_folder(
        out / "checkpoint", _is_checkpoint
    ) as folder:  # not in place: bundles have hard links to the old files
        make_checkpoint(folder)
    dense, funnel, writer = (
        export(
            out / "checkpoint",
            out / name,
            funnel=spec,
            task=task,
            overwrite=True,
            progress=partial(_in_stage, progress, f"{name} bundle"),
        )
        for name, spec, task in (
            ("dense", None, Task.TEXT_GENERATION),
            ("funnel", FUNNEL, Task.TEXT_GENERATION),
            ("writer", FUNNEL, Task.TEXT_GENERATION_WITH_PAST),
        )
    )
    engines = []
    for target in map(get_target, target_names()):
        found = availability_of(target)
        if found.compiles and (not target.runs_graphs or target.supports(funnel.spec) is None):
            stage = partial(_in_stage, progress, f"engines: {target.name}")
            engine = compile_bundle(funnel, target.name, progress=stage)
            engines += [engine.name] if found.available else []
    parity = check(funnel, progress=partial(_in_stage, progress, "parity"))
    report = bench(
        funnel,
        engines=engines or None,  # the graphs themselves take as long
        dense=dense,
        pytorch=("eager",),
        lengths=lengths,
        rounds=rounds,
        parity=parity,
        progress=partial(_in_stage, progress, "latency"),
    )
    cached = check(writer, max_length=CHECKED, progress=partial(_in_stage, progress, "parity with a cache"))
    progress("generating a text")
    text = generate(writer, PROMPT, sample=False, max_new_tokens=NEW_TOKENS)
    _mark(out, report.model_dump_json(indent=2) + "\n")
    return Demo(report, cached, text)


def _mark(out: Path, text: str) -> None:
    try:
        write_text(out / MARK, text)
    except OSError as err:
        raise no_room(err, out) or BundleError(
            "the output folder cannot be written", got=err, wanted=f"to create {out / MARK}", hint=elsewhere(out)
        ) from err


def _is_demo(out: Path) -> bool:
    """Whether a folder holds an earlier demo, finished or not."""
    try:
        content = read_bytes(out / MARK, LARGEST_JSON)
        return content == STARTED.encode() or bool(_Mark.model_validate_json(content))
    except (OSError, ValidationError):
        return False


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a demo's checkpoint and nothing else."""
    known = {CONFIG, SINGLE, *COMPANIONS}
    return all(entry.name in known and entry.is_file() for entry in folder.iterdir())


class _Mark(BaseModel):
    """The part of a demo's result that all versions share."""

    schema_version: int
    conditions: dict[str, str]
    parity: dict[str, Any]
    rows: list[Any]


def _in_stage(progress: Progress, stage: str, step: str, done: float | None = None, /) -> None:
    shares = () if done is None else (done,)
    progress(f"{stage}: {step}", *shares)


def describe_demo(out: Path, found: Demo) -> str:
    """The demo's result as text."""
    report, text = found.report, found.text
    rate = "" if text.tokens_per_second is None else f", {text.tokens_per_second:.0f} a second"
    bundles = ", ".join(str(out / name) for name in ("dense", "funnel", "writer"))
    return "\n\n".join(
        (
            inspect(out / "funnel").to_text(),
            "parity with eager PyTorch, on the worst batch of each\n" + describe_parity(report.parity, worst=True),
            "latency\n" + describe_latency(report),
            "parity of the graphs with a cache\n" + describe_parity(found.cached, worst=True),
            f"{len(text.tokens)} tokens{rate}; the weights are random\n{PROMPT}{text.text}",
            f"The bundles: {bundles}; show one with `funnel-export inspect`.\n"
            f"The report: {(out / 'funnel' / REPORTS / 'report.html').absolute()}",
        )
    )


def make_checkpoint(folder: Path, **changes: int) -> None:
    """Write a Gemma2 with 12 layers and random weights, and a tokenizer trained on Python's documentation.

    The weights' range is wide and the softcaps are small, so that softcaps and sliding windows affect the outputs.

    Args:
        folder: where to write it.
        changes: other values for its config, for example for a smaller model.
    """
    tokenizer = make_tokenizer()
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 64,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "initializer_range": 0.06,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    config = GEMMA2.make_config(**values | changes)
    torch.manual_seed(0)
    with without_progress_bars():
        GEMMA2.model_class(Task.TEXT_GENERATION)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> Any:
    """A Gemma tokenizer of 4096 tokens, trained on the documentation that comes with Python.

    Its files name Gemma's tokenizer class, as real checkpoints do, so transformers 4 can read them too. For a tokenizer
    without its own class, transformers 5 writes `TokenizersBackend`, which version 4 does not know.
    """
    from pydoc_data.topics import topics

    from transformers import GemmaTokenizer

    words = (re.findall(r"\s*\S+", text) for text in topics.values())
    return GemmaTokenizer(add_bos_token=True).train_new_from_iterator(words, 4096, show_progress=False)
