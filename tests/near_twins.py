"""Graphs that are wrong by a little: beyond a limit of `check`, and by less than five times.

Each break has a size, and one at which it changes nothing or little: what passes then shows that only the size fails.
"""

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from breaks import node, set_constants
from exported import Recipe, with_weights
from numpy.typing import NDArray

from funnel_export import Bundle

Change = Callable[[ir.Model], None]
TARGETS = {"float32": ["onnxruntime", "openvino"], "bfloat16": ["openvino"]}
"""The targets that compute in a dtype here."""
QUIET = 0.003
"""What the quiet layer's output is multiplied by: float32 hides a layer's errors beyond a few thousandths otherwise."""
RARE = 3
"""A token that only batches of 64 columns have."""
UNLIKELY = 0
"""The token that is predicted least."""


@functools.cache
def quiet_bundle() -> Bundle:
    """A bundle whose layer 2 adds little, as many of a large model do."""

    def quieten(weights: dict[str, torch.Tensor]) -> None:
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
            weights[f"model.layers.2.{norm}.weight"] = torch.full([40], QUIET - 1)  # Gemma's norms add 1

    return with_weights(Recipe(), quieten)


@functools.cache
def copied_bundle() -> Bundle:
    """A bundle in whose vocabulary each of tokens 1 to 30 has a copy among 31 to 60: all logits come in pairs."""

    def copy(weights: dict[str, torch.Tensor]) -> None:
        embedding = weights["model.embed_tokens.weight"]
        embedding[31:] = embedding[1:31]
        embedding[0] = -embedding[1:31].mean(0)

    return with_weights(Recipe(), copy)


def softcap(factor: float) -> Change:
    """Another softcap in layer 2, by a factor."""

    def change(model: ir.Model) -> None:
        for op_type in ("Div", "Mul"):
            set_constants(model, op_type, "layers.2/", 2.5, 2.5 * factor)

    return change


def epsilon(value: float) -> Change:
    """Another epsilon in the norms of layer 2."""
    return lambda model: set_constants(model, "Add", "layers.2/", 1e-6, value)


def rounded(dtype: ir.DataType) -> Change:
    """The gate of layer 2's MLP is rounded to another dtype on its way."""

    def change(model: ir.Model) -> None:
        gelu = node(model, "layers.2/", "Gelu")
        (gate,) = gelu.inputs
        assert gate is not None
        down = ir.node("Cast", [gate], attributes={"to": dtype}, name="down")
        up = ir.node("Cast", [down.outputs[0]], attributes={"to": gate.dtype}, name="up")
        model.graph.insert_before(gelu, [down, up])
        gelu.replace_input_with(0, up.outputs[0])

    return change


def shifted_logits(size: float) -> Change:
    """All logits are off by the same, which changes no probability."""
    return lambda model: _add(model, _constant(model, "shift", np.array(size)))


def one_logit(size: float) -> Change:
    """The logit of an unlikely token is off, after a rare token."""
    return _after_rare_token(np.where(np.arange(61) == UNLIKELY, size, 0.0))


def zigzag(size: float) -> Change:
    """All logits are off after a rare token, every other one the other way."""
    return _after_rare_token(np.where(np.arange(61) % 2, size, -size))


def copies_first(size: float) -> Change:
    """The logits of tokens 31 to 60 are off by the same."""
    return lambda model: _add(model, _constant(model, "copies", np.where(np.arange(61) > 30, size, 0.0)))


def _after_rare_token(errors: NDArray[np.float64]) -> Change:
    """Add errors, [vocabulary], to the logits at positions of the rare token."""

    def change(model: ir.Model) -> None:
        tokens = model.graph.inputs[0]
        found = ir.node("Equal", [tokens, ir.Value(name="rare", const_value=ir.tensor(np.array(RARE)))])
        model.graph.register_initializer(found.inputs[1])
        number = ir.node("Cast", [found.outputs[0]], attributes={"to": model.graph.outputs[0].dtype})
        axis = ir.Value(name="last_axis", const_value=ir.tensor(np.array([-1])))
        model.graph.register_initializer(axis)
        column = ir.node("Unsqueeze", [number.outputs[0], axis])
        error = ir.node("Mul", [column.outputs[0], _constant(model, "errors", errors)])
        for index, made in enumerate((found, number, column, error)):
            made.name = made.outputs[0].name = f"rare{index}"
            model.graph.append(made)
        _add(model, error.outputs[0])

    return change


def _constant(model: ir.Model, name: str, array: NDArray[np.float64]) -> ir.Value:
    """An initializer in the dtype of the graph's output."""
    dtype = model.graph.outputs[0].dtype
    assert dtype is not None
    value = ir.Value(name=name, const_value=ir.tensor(array.astype(dtype.numpy())))
    model.graph.register_initializer(value)
    return value


def _add(model: ir.Model, term: ir.Value) -> None:
    """Let the graph's output be the sum of what it was and of a term."""
    logits = model.graph.outputs[0]
    total = ir.node("Add", [logits, term], name="total")
    total.outputs[0].name, logits.name = logits.name, "logits_without_error"
    total.outputs[0].dtype, total.outputs[0].shape = logits.dtype, logits.shape
    model.graph.append(total)
    model.graph.outputs[0] = total.outputs[0]
