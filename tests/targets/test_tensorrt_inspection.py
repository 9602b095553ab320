"""What the engine inspector tells is counted, and a plan of another precision than the graph's is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import Recipe
from fakes import Cuda, Inspector, make_module

from funnel_export.errors import TargetRefusedError, TargetUnavailableError
from funnel_export.spec.choices import Dtype
from funnel_export.targets.tensorrt.gpu import Gpu
from funnel_export.targets.tensorrt.inspection import check_precision, inspect_plan, summarise
from funnel_export.targets.tensorrt.logger import make_logger


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


FIND = "funnel_export.targets.tensorrt.inspection.find_gpu"


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Inspects a plan on a machine with a GPU."""
    monkeypatch.setattr(FIND, lambda: Gpu("NVIDIA L40S", "8.9", "13.0"))
    monkeypatch.setattr(Inspector, "_information", json.dumps(INFORMATION))

    def run(dtype: Dtype, plan: bytes = b"") -> Any:
        (tmp_path / "model.plan").write_bytes(b"vtrt\n" + str(Recipe().bundle().model.path).encode() + b"\n" + plan)
        trt = make_module(Cuda(), "11.4.0.106")
        return inspect_plan(trt, make_logger(trt), tmp_path / "model.plan", dtype)

    return run


@pytest.mark.parametrize("plan", [b"", b"host code"], ids=["plain", "version compatible"])
def test_a_plan_is_inspected_on_a_machine_that_can_load_it(plan: bytes, inspect: Callable[..., Any]) -> None:
    assert inspect(Dtype.BFLOAT16, plan) == summarise(INFORMATION)


def test_a_plan_that_computes_in_another_dtype_is_refused_after_its_build(
    inspect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inspector, "_information", json.dumps({"Layers": [layer("gemm", "Float")]}))
    with pytest.raises(TargetRefusedError, match=r"(?s)does not compute.*2 tensors in float32\n.*some in bfloat16"):
        inspect(Dtype.BFLOAT16)


def test_a_plan_for_other_gpus_is_not_inspected(inspect: Callable[..., Any]) -> None:
    assert inspect(Dtype.BFLOAT16, b"for another GPU") is None


def test_without_a_gpu_no_plan_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Gpu:
        raise TargetUnavailableError("there is no NVIDIA driver here")

    monkeypatch.setattr(FIND, find)
    assert inspect_plan(None, None, tmp_path / "missing.plan", Dtype.FLOAT32) is None
