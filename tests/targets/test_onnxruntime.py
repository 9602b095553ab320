"""ONNX Runtime: inputs that its Python interface does not take as they are."""

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from funnel_export.spec.choices import Dtype
from funnel_export.targets.onnxruntime import OnnxRuntimeSession


def session() -> OnnxRuntimeSession:
    """The one bfloat16 kernel that the CPU provider has: a cast. A cache in bfloat16 is such an input."""
    ends = [
        helper.make_tensor_value_info(name, kind, ["rows", "columns"])
        for name, kind in (("x", TensorProto.BFLOAT16), ("y", TensorProto.FLOAT))
    ]
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return OnnxRuntimeSession(made, Dtype.BFLOAT16)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        np.arange(12, dtype=np.float32).reshape(4, 3).T,  # a view with other strides
        np.zeros((2, 0), np.float32),  # an empty cache
    ],
    ids=["rows", "view", "empty"],
)
def test_it_takes_bfloat16(array: NDArray[Any]) -> None:
    inputs = {"x": array.astype(ml_dtypes.bfloat16, order="K")}
    for given in (inputs, {"x": array}):  # the graph before returns hidden states in float32
        found = session().run(given)["y"]
        assert found.shape == array.shape
        assert (found == array).all()
        session().prepare(given)()
