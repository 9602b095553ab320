"""Changing bundles behind their manifests' backs, or together with them; and seeing whether anything changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx


def rewrite_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph, and let the manifest agree with it."""
    graph = folder / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    agree_with_graph(folder)


def agree_with_graph(folder: Path, role: str = "model") -> None:
    digest = hashlib.sha256((folder / f"{role}.onnx").read_bytes()).hexdigest()
    rewrite_json(folder / "manifest.json", lambda m: m["graphs"][role].update(sha256=digest))


def listing(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
