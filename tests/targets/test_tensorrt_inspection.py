"""What the engine inspector tells is counted, and a plan of another precision than the graph's is refused."""

from typing import Any

import pytest

from funnel_export.errors import TargetRefusedError
from funnel_export.spec.choices import Dtype
from funnel_export.targets.tensorrt.inspection import check_precision, summarise


def layer(kind: str, *dtypes: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": "x", "LayerType": kind, "Inputs": [{"Name": "i", key: dtypes[0]}], "Outputs": [{key: dtypes[-1]}]}


INFORMATION = {
    "Layers": [
        layer("gemm", "BFloat16", "BFloat16"),
        layer("gemm", "BFloat16", "Float"),
        layer("kgen", "Int64", "Row major linear BF16 format (kLINEAR)"),
        layer("kgen", "Half", "Row major linear FP16 format"),
        layer("kgen", "Float", "Row major linear FP32 format", key="DataType"),
        layer("signal", "Bool", "Int32"),
    ],
    "I/O Tensors": [{"Name": "logits", "DataType": "BFloat16"}],
}


def test_layers_and_tensors_are_counted() -> None:
    assert summarise(INFORMATION) == {
        "layers": {"kgen": 3, "gemm": 2, "signal": 1},
        "tensors": {"bfloat16": 4, "float32": 3, "float16": 2},
    }


def test_a_plan_that_keeps_names_only_tells_nothing() -> None:
    assert summarise({"Layers": ["one", "two"]}) == {"layers": {}, "tensors": {}}
    check_precision({}, Dtype.BFLOAT16)


def test_a_plan_without_the_graphs_dtype_is_refused() -> None:
    check_precision({"float32": 900, "float16": 1}, Dtype.FLOAT16)
    with pytest.raises(TargetRefusedError, match=r"(?s)does not compute.*900 tensors in float32\n.*some in float16"):
        check_precision({"float32": 900}, Dtype.FLOAT16)
