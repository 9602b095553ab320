"""Reviewed graphs: comparing them with a fresh export, and accepting changes.

They are text files without weights: `contracts/*.txt` has whole graphs of tiny models, `ops/*.onnxtxt` the funnel's own
operations, and `CHANGES.md` the reason of each accepted change.
"""

import datetime
import difflib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from funnel_export.bundle.manifest import MODEL
from funnel_export.commands.export import export
from funnel_export.commands.inspect import describe_graphs
from funnel_export.errors import BundleError, SpecError
from funnel_export.families.base import Family
from funnel_export.families.registry import families
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.choices import Dtype, Recovery, Task
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.quantization import Quantization
from funnel_export.system.atomic import write_text

CHANGES = "CHANGES.md"
TITLE = "# Accepted changes\n\nNewest first; `funnel-export dev graph accept --why` writes this.\n"
TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript")
"""Packages whose versions affect the graphs."""


@dataclass(frozen=True, slots=True)
class Contract:
    """A reviewed graph: the family's tiny model, exported with these settings from a checkpoint in dtype `stored`."""

    family: Family
    task: Task
    funnel: FunnelSpec | None
    dtype: Dtype
    stored: Dtype
    quantization: Quantization | None = None

    @property
    def name(self) -> str:
        """File name of the contract, without `.txt`."""
        spec, funnel = self.funnel, "dense"
        if spec is not None:
            ways = ["lookahead"] * spec.lookahead + ["linear"] * (spec.recovery is Recovery.LINEAR)
            funnel = "-".join(["drop" if spec.drop else f"s{spec.stride}", *ways])
        source = "" if self.stored is self.dtype else f"-from-{self.stored}"
        bits = "" if self.quantization is None else f"-{self.quantization.bits}bits"
        return f"{self.family.contract_prefix}{self.task}-{funnel}-{self.dtype}{source}{bits}"


def _contracts(family: Family) -> Iterator[Contract]:
    """Tasks, strides and dtypes of Gemma2; of the others, which differ from it in their layers, a few."""
    half, quarter = FunnelSpec.parse("1:3:2"), FunnelSpec.parse("1:3:4")
    ahead = FunnelSpec.parse("1:3:2", lookahead=True)
    contract = partial(Contract, family)
    if family.contract_prefix:
        yield contract(Task.TEXT_GENERATION, None, Dtype.FLOAT32, Dtype.FLOAT32)
        yield contract(Task.TEXT_GENERATION, half, Dtype.FLOAT32, Dtype.FLOAT32)
        yield contract(Task.TEXT_GENERATION, half, Dtype.BFLOAT16, Dtype.BFLOAT16)
        return
    for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
        for funnel in (None, half, quarter):
            yield contract(Task.TEXT_GENERATION, funnel, dtype, dtype)
        yield contract(Task.TOKEN_CLASSIFICATION, ahead, dtype, dtype)
    yield contract(Task.TEXT_GENERATION, half, Dtype.FLOAT32, Dtype.BFLOAT16)
    for funnel in (None, half):
        yield contract(Task.TEXT_GENERATION_WITH_PAST, funnel, Dtype.FLOAT32, Dtype.FLOAT32)
    yield contract(Task.TEXT_GENERATION_WITH_PAST, quarter, Dtype.BFLOAT16, Dtype.BFLOAT16)
    mapped, dropped = (FunnelSpec.parse(text, recovery=Recovery.LINEAR) for text in ("1:3:2", "1:3:drop"))
    yield contract(Task.TEXT_GENERATION, mapped, Dtype.FLOAT32, Dtype.FLOAT32)
    yield contract(Task.TEXT_GENERATION_WITH_PAST, mapped, Dtype.BFLOAT16, Dtype.BFLOAT16)
    yield contract(Task.TEXT_GENERATION, dropped, Dtype.BFLOAT16, Dtype.BFLOAT16)
    yield contract(Task.TEXT_GENERATION_WITH_PAST, dropped, Dtype.FLOAT32, Dtype.FLOAT32)
    four = Quantization(bits=4, block_size=16, symmetric=False)
    yield contract(Task.TEXT_GENERATION, half, Dtype.FLOAT32, Dtype.BFLOAT16, four)
    yield contract(Task.TEXT_GENERATION_WITH_PAST, mapped, Dtype.BFLOAT16, Dtype.BFLOAT16, Quantization(bits=8))
    yield contract(Task.FEATURE_EXTRACTION, half, Dtype.FLOAT32, Dtype.FLOAT32)
    yield contract(Task.TEXT_CLASSIFICATION, ahead, Dtype.FLOAT32, Dtype.FLOAT32)
    yield contract(Task.TEXT_CLASSIFICATION, quarter, Dtype.BFLOAT16, Dtype.BFLOAT16)


CONTRACTS = tuple(each for family in families() if not family.nested for each in _contracts(family))


def contract_of(case: Contract) -> str:
    """The text of a fresh export of the tiny model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_checkpoint(folder / "checkpoint", case)
        bundle = export(
            folder / "checkpoint",
            folder / "bundle",
            funnel=case.funnel,
            task=case.task,
            dtype=case.dtype,
            quantization=case.quantization,
        )
        bits = "" if case.quantization is None else f", {case.quantization}"
        title = f"{case.task}, funnel {_describe(case.funnel)}, {case.dtype}{bits}"
        texts = describe_graphs(bundle)
        if not case.task.has_past:
            return f"{title}\n{texts[MODEL]}"
        return "\n".join([title, *(f"\ngraph {role}\n{text}" for role, text in texts.items())])


def _describe(funnel: FunnelSpec | None) -> str:
    return "none" if funnel is None else ", ".join(f"{name} {value}" for name, value in funnel.to_dict().items())


def _make_checkpoint(folder: Path, case: Contract) -> None:
    import torch

    from funnel_export.funnel import apply_funnel
    from funnel_export.verify.reference import without_progress_bars

    torch.manual_seed(0)
    config = case.family.make_config(**case.family.tiny)
    model: Any = case.family.model_class(case.task)._from_config(config, dtype=getattr(torch, case.stored))
    if case.funnel is not None and case.funnel.recovery is Recovery.LINEAR:
        apply_funnel(model, case.funnel)
    with without_progress_bars():
        model.save_pretrained(folder)


def fresh_graphs(progress: Progress = no_progress) -> Iterator[tuple[str, str]]:
    """Fresh versions of every file in the folder except `CHANGES.md`: relative path and text."""
    from funnel_export.exporter.ops import describe_ops

    for case in CONTRACTS:
        progress(case.name)
        yield f"contracts/{case.name}.txt", contract_of(case)
    progress("operations")
    for name, text in describe_ops().items():
        yield f"ops/{name}.onnxtxt", text


def check_graphs(folder: Path, progress: Progress = no_progress) -> dict[str, str]:
    """Compare a folder of reviewed graphs with fresh ones; return a unified diff for each file that differs.

    Raises:
        BundleError: if the folder has no reviewed graphs.
    """
    stored = _stored(folder)
    if not stored:
        raise BundleError(
            "no reviewed graphs found",
            got=folder,
            wanted="a folder with contracts/ and ops/",
            hint='funnel-export dev graph accept --why "first graphs"',
        )
    return _differences(stored, dict(fresh_graphs(progress)))


def accept_graphs(folder: Path, why: str, progress: Progress = no_progress) -> list[str]:
    """Write fresh graphs into the folder and the reason into `CHANGES.md`; return the changed files.

    Raises:
        SpecError: if no reason is given, or in a CI run, since a person must review the changes.
        BundleError: if the folder holds text files that were never accepted.
    """
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise SpecError(
            "changed graphs cannot be accepted in CI: a person must review them",
            got=f"the environment variable CI={os.environ['CI']}",
            wanted="funnel-export dev graph check",
            hint="run `funnel-export dev graph accept --why ...` on your machine, and commit the files",
        )
    if not why.strip():
        raise SpecError("a changed graph needs a reason", got=repr(why), wanted="--why with a sentence")
    stored, log = _stored(folder), folder / CHANGES
    earlier = log.read_text(encoding="utf-8") if log.exists() else ""
    if stored and not earlier.startswith(TITLE):
        raise BundleError(
            "the folder holds text files that were never accepted; they were left unchanged",
            got=f"{sorted(stored)[0]} and no {CHANGES} of accepted changes in {folder}",
            wanted="a new folder, or one that `funnel-export dev graph accept` wrote",
        )
    fresh = dict(fresh_graphs(progress))
    changed = _differences(stored, fresh)
    if not changed:
        return []
    tools = ", ".join(f"{tool} {version(tool)}" for tool in TOOLS)
    entry = f"## {datetime.date.today()}: {why.strip()}\n\nWith {tools}.\n\n"
    entry += "".join(f"- {path}: {_size(diff)}\n" for path, diff in changed.items())
    for path in changed:
        if path in fresh:
            write_text(folder / path, fresh[path])
        else:
            (folder / path).unlink()
    write_text(log, f"{TITLE}\n{entry}{earlier.removeprefix(TITLE)}")
    return list(changed)


def _stored(folder: Path) -> dict[str, str]:
    files = [*folder.glob("contracts/*.txt"), *folder.glob("ops/*.onnxtxt")]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}


def _differences(stored: dict[str, str], fresh: dict[str, str]) -> dict[str, str]:
    """A unified diff for every file that was changed, added or removed."""
    diffs = {}
    for path in sorted(stored | fresh):
        before, after = stored.get(path, ""), fresh.get(path, "")
        if before != after:
            lines = difflib.unified_diff(
                before.splitlines(keepends=True), after.splitlines(keepends=True), f"accepted/{path}", f"fresh/{path}"
            )
            diffs[path] = "".join(lines)
    return diffs


def _size(diff: str) -> str:
    lines = diff.splitlines()[2:]
    return f"+{sum(line.startswith('+') for line in lines)} -{sum(line.startswith('-') for line in lines)}"
