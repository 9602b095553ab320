"""Messages of TensorRT and CUDA: which are kept, and how they become errors with a place and a remedy."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Cuda, Severity, make_module

from funnel_export import FunnelSpec
from funnel_export.errors import TargetRefusedError, TargetUnavailableError
from funnel_export.spec.choices import Dtype
from funnel_export.spec.funnel import segments_of
from funnel_export.targets.tensorrt import gpu
from funnel_export.targets.tensorrt.logger import make_logger
from funnel_export.targets.tensorrt.parse import (
    OTHERWISE,
    check_product_dtypes,
    count_products,
    describe_failure,
    remedy,
)

SEGMENTS = segments_of(FunnelSpec.parse("1:3:2"), 4)
NOISE = "[catchCudaError] cudaError 35: CUDA driver version is insufficient for CUDA runtime version"


def test_errors_and_warnings_are_kept_and_a_repeated_warning_once() -> None:
    logger = make_logger(make_module(Cuda(), "11.4.0.106"))
    for severity, message in [
        (Severity.INTERNAL_ERROR, "a bug"),
        (Severity.ERROR, "an error"),
        (Severity.ERROR, "an error"),
        (Severity.WARNING, "a warning"),
        (Severity.WARNING, "a warning"),
        (Severity.INFO, "hello"),
    ]:
        logger.log(severity, message)
    assert logger.errors == ["a bug", "an error", "an error"]
    assert logger.warnings == ["a warning"]


def test_a_failure_has_the_places_of_its_nodes_and_no_noise() -> None:
    names = ["layers.2/MatMul.linear", "layers.2/MatMul.linear_1", "layers.3/Add.result", ""]
    failure = describe_failure([NOISE, "no tactic for {layers.2/MatMul.linear_1}"], names, SEGMENTS)
    assert failure.splitlines() == [
        "no tactic for {layers.2/MatMul.linear_1}",
        "layers.2/MatMul.linear_1 is in layer 2, middle, on 1/2 of the length",
    ]
    assert describe_failure(["bad: somebody/else"], ["somebody/else"], SEGMENTS).splitlines()[1] == "somebody/else"
    assert describe_failure([NOISE], names, SEGMENTS) == "no reason was given"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("ElementWise: inputs must have same input types", "cast one of the inputs"),
        ("[Attention] softcap == 0.0", "TensorRT has no softcap in Attention"),
        ("[RMSNormalization] no importer", "decompose this op"),
        ("Plugin not found: Erf2", "only ops of the standard ONNX domain"),
        ("BF16 is not supported for Turing", "leave 7.5 out"),
        ("Error Code 2: OutOfMemory", "smaller --profile"),
        ("something else", OTHERWISE),
    ],
)
def test_the_remedy_fits_the_message(text: str, advice: str) -> None:
    assert advice in remedy(text)


def network(*layers: tuple[str, str]) -> Any:
    """A network of layers: their type, and the dtype of their output."""

    def make(kind: str, dtype: str) -> Any:
        output = SimpleNamespace(dtype=SimpleNamespace(name=dtype))
        return SimpleNamespace(type=kind, get_output=lambda index: [output][index])

    made = [make(*layer) for layer in layers]
    return SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__)


def test_matrix_products_are_counted_by_the_dtype_of_their_output() -> None:
    trt = SimpleNamespace(LayerType=SimpleNamespace(MATRIX_MULTIPLY="product"))
    layers = [("product", "BF16"), ("sum", "FLOAT"), ("product", "BF16"), ("product", "FLOAT"), ("product", "FP8")]
    assert count_products(trt, network(*layers)) == {"bfloat16": 2, "float32": 1, "fp8": 1}


@pytest.mark.parametrize(
    ("products", "says"),
    [
        ({"float32": 3, "bfloat16": 3}, "3 in float32, 3 in bfloat16"),
        ({"float32": 7}, "7 in float32"),
        ({}, "none"),
    ],
)
def test_a_network_of_another_dtype_is_refused(products: dict[str, int], says: str) -> None:
    check_product_dtypes({"bfloat16": 4, "float32": 3}, Dtype.BFLOAT16)
    with pytest.raises(TargetRefusedError, match=rf"(?s)bundle's dtype.*products: {says}\n.*most of .* bfloat16"):
        check_product_dtypes(products, Dtype.BFLOAT16)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Sets what functions of the CUDA runtime return; gives their errors."""
    bindings = pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError
    )

    def answer(**functions: Any) -> Any:
        for name, result in functions.items():
            monkeypatch.setattr(bindings, name, lambda *_, result=result: result)
        return bindings.cudaError_t

    return answer


def test_results_of_cuda_are_one_value_or_several_or_none(runtime: Callable[..., Any]) -> None:
    done = runtime().cudaSuccess
    runtime(cudaMalloc=(done, 7), cudaFree=(done,), cudaMemGetInfo=(done, 1, 2))
    assert gpu.call("cudaMalloc", 3) == 7
    assert gpu.call("cudaFree", 7) is None
    assert gpu.call("cudaMemGetInfo") == (1, 2)


def test_an_error_of_cuda_is_named(runtime: Callable[..., Any]) -> None:
    runtime(cudaMalloc=(runtime().cudaErrorMemoryAllocation, None))
    with pytest.raises(TargetRefusedError, match=r"(?s)CUDA failed in cudaMalloc.*cudaErrorMemoryAllocation: out of"):
        gpu.call("cudaMalloc", 1 << 60)


def test_a_gpu_that_does_not_answer_is_not_available(runtime: Callable[..., Any]) -> None:
    done = runtime().cudaSuccess
    runtime(
        cudaDriverGetVersion=(done, 13000),
        cudaGetDeviceCount=(done, 1),
        cudaGetDevice=(runtime().cudaErrorDevicesUnavailable, None),
    )
    with pytest.raises(TargetUnavailableError, match=r"(?s)GPU here does not answer.*cudaErrorDevicesUnavailable"):
        gpu.find_gpu()
