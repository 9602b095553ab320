"""Graphs broken on purpose, for the checks that must refuse them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from exported import Recipe
from tamper import agree_with_graph

from funnel_export import Bundle, load_bundle
from funnel_export.config import Dtype
from funnel_export.exporter.audit import audit


def broken(bundle: Bundle, folder: Path, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle whose graph was changed, as if the export had made it so; load_bundle would refuse it."""
    for file in bundle.path.iterdir():
        if file.is_file():
            (folder / file.name).hardlink_to(file)
    model = ir.load(bundle.graph)
    change(model)
    (folder / bundle.graph.name).unlink()
    ir.save(model, folder / bundle.graph.name)
    return replace(bundle, path=folder)


def own(folder: Path) -> Bundle:
    """A copy of a bundle, without the reports that other tests may have left in it."""
    bundle = Recipe().bundle().path
    return load_bundle(shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns("reports")))


def changed(folder: Path, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle with another graph, whose manifest agrees with it: what an export that went wrong would write."""
    bundle = own(folder)
    model = ir.load(bundle.graph)
    change(model)
    bundle.graph.unlink()
    ir.save(model, bundle.graph)
    agree_with_graph(bundle.path)
    return load_bundle(bundle.path)


def loaded(recipe: Recipe) -> ir.Model:
    return ir.load(recipe.bundle().graph)


def run_audit(model: ir.Model, recipe: Recipe) -> None:
    audit(model, recipe.bundle().architecture, recipe.task, recipe.funnel, Dtype(recipe.dtype))


def set_constants(model: ir.Model, op_type: str, prefix: str, old: float, new: float) -> None:
    """Give the constant operands of some nodes another value, as constants of their own."""
    for node in list(model.graph):
        if node.op_type != op_type or not str(node.name).startswith(prefix):
            continue
        for index, value in enumerate(node.inputs):
            array = value.const_value.numpy() if value is not None and value.const_value is not None else None
            if array is not None and array.size == 1 and array.item() == pytest.approx(old):
                constant = ir.Value(name=f"changed.{node.name}", const_value=ir.tensor(np.full_like(array, new)))
                model.graph.register_initializer(constant)
                node.replace_input_with(index, constant)


def another_cap(model: ir.Model) -> None:
    set_constants(model, "Div", "layers.2/", 2.5, 1.5)
    set_constants(model, "Mul", "layers.2/", 2.5, 1.5)


def swapped_masks(model: ir.Model) -> None:
    adds = [softmax.inputs[0].producer() for softmax in model.graph if softmax.op_type == "Softmax"]
    first, last = adds[0], adds[3]  # layers 0 and 3: sliding and full, both on tokens
    one, other = first.inputs[1], last.inputs[1]
    first.replace_input_with(1, other)
    last.replace_input_with(1, one)


def fixed_axis(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["batch_size", 7])
