"""The texts in `graphs/ops` compute the same as the funnel's functions; they are run in ONNX Runtime."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import make_batch, random_rows
from torch import Tensor

from funnel_export.exporter import ops
from funnel_export.exporter.ops import WIDTH, Op, funnel_ops
from funnel_export.funnel.rows import Rows

TEXTS = Path(__file__).parents[2] / "graphs" / "ops"
OPS = {op.name: op for op in funnel_ops()}
STRIDE = 2


def session(name: str) -> onnxruntime.InferenceSession:
    """Check and load the text of an operation."""
    model = onnx.parser.parse_model((TEXTS / f"{name}.onnxtxt").read_text())
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def inputs_of(op: Op, lengths: list[int], side: Any, seed: int) -> dict[str, Tensor]:
    """Inputs of the operation as in a model, for rows of these lengths."""
    batch = make_batch(random_rows(lengths), side, extra=1)
    rows = Rows.of(batch.attention_mask != 0, 0)
    generator = torch.Generator().manual_seed(seed)
    slots = (max(lengths) - 1) // STRIDE + 2
    states = [torch.randn(len(lengths), n, WIDTH, generator=generator) for n in (rows.keys.shape[1], slots, slots)]
    values = {
        "attention_mask": batch.attention_mask,
        "numbers": rows.keys,
        "queries": rows.queries,
        "keys": rows.keys,
        "slots": torch.arange(slots)[None],
        "length": rows.length,
        "first": rows.first,
        "reads": rows.keys.clamp(min=0) // STRIDE,
        "x": states[0],
        "pooled": states[1],
        "middle": states[2],
    }
    weights = {
        name: torch.randn(operand.axes, generator=generator)
        for name, operand in op.inputs.items()
        if name not in values
    }
    return {name: (values | weights)[name] for name in op.inputs}


def outputs_of(function: Callable[..., Any], inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """The results of the funnel's function."""
    result = function(*inputs.values())
    return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", OPS)
def test_text_computes_what_the_function_computes(name: str) -> None:
    op, loaded = OPS[name], session(name)

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(["left", "right"]), st.integers(0, 9))
    def compare(lengths: list[int], side: str, seed: int) -> None:
        inputs = inputs_of(op, lengths, side, seed)
        got = loaded.run(list(op.outputs), {name: value.numpy() for name, value in inputs.items()})
        for one, other in zip(got, outputs_of(op.function, inputs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)

    compare()


def test_constants_are_named_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted texts are compared with fresh ones by the pinned tools only; names are the same with any."""
    monkeypatch.setattr(ops, "funnel_ops", lambda _: [OPS["pool_mean"]])
    text = ops.describe_ops()["pool_mean"]
    named = dict(re.findall(r"(\w+) = Constant <value: tensor = \S+ (\{.*\})>", text))
    assert named["int64s_minus_1_0"] == "{-1,0}"
    assert named["int64s_minus_1"] == "{-1}"
    assert named["int64s_1"] == "{1}"


def test_a_changed_text_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TEXTS / "pool_mean.onnxtxt").read_text()
    (tmp_path / "pool_mean.onnxtxt").write_text(text.replace("int64[2] {-1,0}", "int64[2] {0,0}"))
    assert (tmp_path / "pool_mean.onnxtxt").read_text() != text
    monkeypatch.setitem(globals(), "TEXTS", tmp_path)
    with pytest.raises(AssertionError):
        test_text_computes_what_the_function_computes("pool_mean")
