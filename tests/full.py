"""Commands on a disk that is full, for `hostile/test_room.py`, in a namespace of its own: prints JSON."""

import json
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crash import prepare
from mounting import mount
from safetensors.torch import save_file

from funnel_export import check, compile_bundle, export, load_bundle, package
from funnel_export.commands import demo
from funnel_export.errors import FunnelExportError
from funnel_export.progress import no_progress
from funnel_export.report.pages import write_reports
from funnel_export.system.atomic import replace_folder

LIMIT = 100_000
"""Bytes that a file may have, where files are limited."""


def outcome(folder: Path, job: Callable[[], object]) -> dict[str, Any]:
    """What a job raises on a disk that it finds full, and whether it left the folder as it was."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    error, code = "", 0
    try:
        job()
    except FunnelExportError as err:
        error, code = str(err), err.exit_code
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    return {"error": error, "code": code, "same": before == after}


def leave(folder: Path, free: int) -> Path:
    """Fill a disk but for some bytes."""
    ballast = folder / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(folder).free - free)
    return ballast


def save_model(target: Path) -> None:
    """A library of its own error writes a large file."""
    import torch

    with replace_folder(target, lambda _: False) as folder:
        save_file({"weight": torch.zeros(200_000)}, folder / "model.safetensors")


def main() -> None:
    """Run each command with too little room, told before and found out."""
    folder = Path(sys.argv[1])
    prepare(folder)
    disk = folder / "mnt"
    mount("-t", "tmpfs", "-o", "size=4m", "none", disk)
    bundle, checkpoint = disk / "bundle", disk / "checkpoint"
    shutil.copytree(folder / "old", bundle)
    shutil.copytree(folder / "checkpoint", checkpoint)
    check(bundle, targets=["onnxruntime"], max_length=2)
    compile_bundle(bundle, "onnxruntime")
    linked = partial(export, checkpoint, funnel="1:3:2", task="text-generation", opset=21, overwrite=True)
    result = {}
    for name, free, job in (
        (
            "export, copies",
            190_000,
            partial(export, folder / "checkpoint", bundle, funnel="1:3:2", task="text-generation", overwrite=True),
        ),
        ("export, links", 40_000, partial(linked, bundle)),
        ("export, new", 40_000, partial(linked, disk / "new")),
        ("onnxruntime, told", 190_000, partial(compile_bundle, bundle, "onnxruntime")),
        ("onnxruntime", 230_000, partial(compile_bundle, bundle, "onnxruntime")),
        ("openvino, told", 190_000, partial(compile_bundle, bundle, "openvino")),
        ("openvino", 230_000, partial(compile_bundle, bundle, "openvino")),
        ("package, told", 190_000, partial(package, bundle, disk / "models", weights="copy")),
        ("package", 210_000, partial(package, bundle, disk / "models", weights="copy")),
        ("report", 30_000, lambda: write_reports(load_bundle(bundle))),
        ("a library", 90_000, partial(save_model, disk / "model")),
        ("demo", 0, partial(demo.run_demo, disk / "demo", progress=no_progress)),
    ):
        leave(disk, free)
        result[name] = outcome(disk, job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        passed = check(bundle, targets=["onnxruntime"], max_length=2).passed
    result["check"] = {"passed": passed, "warning": str(caught[-1].message)}
    (disk / "ballast").unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    for target in ("onnxruntime", "openvino"):
        result[f"{target}, limited"] = outcome(disk, partial(compile_bundle, bundle, target))
    result["export, limited"] = outcome(
        disk, partial(export, checkpoint, bundle, funnel="1:3:2", task="text-generation", weights="copy")
    )
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
