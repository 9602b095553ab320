"""What Triton is told: `config.pbtxt` by Triton's own schema for every task and dtype, and invalid options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import BF16, FP16, FP32, INT64, STRING, config, tensor
from tritonclient.grpc import model_config_pb2

from funnel_export.bundle import ports
from funnel_export.bundle.manifest import GraphRecord
from funnel_export.bundle.ports import Port
from funnel_export.errors import BundleError, SpecError
from funnel_export.packaging.triton import served
from funnel_export.packaging.triton_config import (
    generation_config,
    is_as_written,
    model_config,
    noted_digest,
    parse_config,
    write_config,
)
from funnel_export.spec.choices import Backend, Dtype, Kind, Task
from funnel_export.spec.profile import Profile
from funnel_export.spec.triton import TritonOptions

KINDS = {"input": ports.PortKind.TOKENS, "output": ports.PortKind.LOGITS}


def contracts() -> Iterator[tuple[str, GraphRecord]]:
    """Task and ends of the graphs that CI compares with fresh exports, in every dtype."""
    for path in sorted((Path(__file__).parents[2] / "graphs" / "contracts").glob("*.txt")):
        text = path.read_text()
        if "-with-past-" in path.name:  # `package` takes graphs of whole texts only
            continue
        for dtype in Dtype:  # shapes do not depend on it
            ends: dict[str, list[Port]] = {"input": [], "output": []}
            for end, name, sizes in re.findall(r"^(input|output) (\w+) \w+\[(.*)\]$", text, re.MULTILINE):
                shape = [int(size) if size.isdigit() else size for size in sizes.split(", ")]
                kind = "int64" if end == "input" else dtype
                ends[end].append(Port(name=name, kind=KINDS[end], dtype=kind, shape=shape))
            graph = GraphRecord(file="model.onnx", sha256="0" * 64, inputs=ends["input"], outputs=ends["output"])
            yield text.split(",")[0], graph


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TENSORRT])
def test_a_config_says_what_the_graph_is(backend: Backend) -> None:
    seen = set()
    for task, graph in contracts():
        dtype, output = Dtype(graph.outputs[0].dtype), graph.outputs[0]
        found = model_config("m", served(graph, backend), dtype, [], TritonOptions(backend=backend))
        names = {"backend": "onnxruntime"} if backend is Backend.ONNXRUNTIME else {"platform": "tensorrt_plan"}
        assert {"backend": found.backend, "platform": found.platform} == {"backend": "", "platform": "", **names}
        assert list(map(tensor, found.input)) == [("input_ids", INT64, [-1]), ("attention_mask", INT64, [-1])]
        sixteen = BF16 if backend is Backend.TENSORRT else FP32
        kind = {Dtype.FLOAT32: FP32, Dtype.FLOAT16: FP16, Dtype.BFLOAT16: sixteen}[dtype]
        tail = [output.shape[-1]] if task == "text-classification" else [-1, output.shape[-1]]
        assert list(map(tensor, found.output)) == [(output.name, kind, tail)]
        only_gpu = backend is Backend.TENSORRT or dtype is Dtype.BFLOAT16
        place = model_config_pb2.ModelInstanceGroup.Kind.Name(found.instance_group[0].kind)
        assert place == ("KIND_GPU" if only_gpu else "KIND_AUTO")
        assert parse_config(write_config(found)) == found
        seen.add(task)
    assert seen == {task for task in Task if not task.has_past}


GRAPH = GraphRecord(
    file="model.onnx",
    sha256="0" * 64,
    inputs=[Port(name="input_ids", kind=KINDS["input"], dtype="int64", shape=["batch_size", "sequence_length"])],
    outputs=[Port(name="logits", kind=KINDS["output"], dtype="float32", shape=["batch_size", "sequence_length", 7])],
)


def made(*profiles: str, dtype: Dtype = Dtype.FLOAT32, **options: Any) -> Any:
    return model_config("m", GRAPH, dtype, [Profile.parse(text) for text in profiles], TritonOptions(**options))


def test_every_option_is_where_triton_looks_for_it() -> None:
    assert made(max_batch_size=0, instances=3, kind=Kind.GPU, gpus=(0, 2)) == config(
        'name: "m" backend: "onnxruntime" max_batch_size: 0 '
        'input { name: "input_ids" data_type: TYPE_INT64 dims: -1 dims: -1 } '
        'output { name: "logits" data_type: TYPE_FP32 dims: -1 dims: -1 dims: 7 } '
        "instance_group { count: 3 kind: KIND_GPU gpus: 0 gpus: 2 }"
    )
    assert made("a:batch=1:1:4,sequence=8", "b:batch=1:8:16,sequence=8", backend=Backend.TENSORRT) == config(
        'name: "m" platform: "tensorrt_plan" max_batch_size: 16 '
        'input { name: "input_ids" data_type: TYPE_INT64 dims: -1 } '
        'output { name: "logits" data_type: TYPE_FP32 dims: -1 dims: 7 } '
        'instance_group { count: 1 kind: KIND_GPU profile: "0" profile: "1" }'
    )


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"dynamic_batching": True}, "dynamic_batching {}"),
        ({"preferred_batch_size": (2, 4)}, "dynamic_batching { preferred_batch_size: [2, 4] }"),
        ({"max_queue_delay_us": 100}, "dynamic_batching { max_queue_delay_microseconds: 100 }"),
        ({}, ""),
    ],
    ids=str,
)
def test_dynamic_batching(options: dict[str, Any], meant: str) -> None:
    found = parse_config(write_config(made(**options)))
    assert found.HasField("dynamic_batching") == bool(meant)
    assert found.dynamic_batching == config(meant).dynamic_batching


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": -1}, "invalid max_batch_size"),
        ({"max_batch_size": 1 << 40}, "invalid max_batch_size"),
        ({"instances": 0}, "invalid instances"),
        ({"max_queue_delay_us": -1}, "invalid max_queue_delay_us"),
        ({"preferred_batch_size": (0,)}, "invalid preferred_batch_size"),
        ({"preferred_batch_size": (4,), "max_batch_size": 3}, "exceeds max_batch_size"),
        ({"dynamic_batching": True, "max_batch_size": 1}, "at least two rows"),
        ({"max_queue_delay_us": 5, "max_batch_size": 0}, "at least two rows"),
        ({"gpus": (-1,)}, "invalid gpu"),
        ({"gpus": (1, 1)}, "given twice"),
        ({"kind": Kind.CPU, "gpus": (0,)}, "does not use GPUs"),
        ({"kind": Kind.CPU, "backend": Backend.TENSORRT}, "GPUs only"),
        ({"engine": "here", "backend": Backend.ONNXRUNTIME}, "--backend tensorrt"),
        ({"max_bytes": 0}, "invalid max_bytes"),
        ({"target": "openvino", "backend": Backend.ONNXRUNTIME}, "only the python backend"),
        ({"max_bytes": 9, "backend": Backend.TENSORRT}, "only the python backend"),
        ({"max_batch_size": 0, "backend": Backend.PYTHON}, "invalid max_batch_size"),
        ({"dynamic_batching": True, "backend": Backend.PYTHON}, "batches texts itself"),
        ({"kind": Kind.CPU, "backend": Backend.PYTHON}, "where its target does"),
        ({"gpus": (0,), "backend": Backend.PYTHON}, "where its target does"),
    ],
    ids=str,
)
def test_options_are_checked_at_birth(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TritonOptions(**options)


@pytest.mark.parametrize("task", list(Task))
def test_the_task_decides_on_the_backend(task: Task) -> None:
    fitting = {Backend.PYTHON} if task.has_past else {Backend.ONNXRUNTIME, Backend.TENSORRT}
    for backend in Backend:
        if backend in fitting:
            assert TritonOptions(backend=backend).for_task(task).backend is backend
        else:
            with pytest.raises(SpecError, match=rf"(?s)the {backend} backend does not run.*{task}"):
                TritonOptions(backend=backend).for_task(task)
    assert TritonOptions().for_task(task).backend is (Backend.PYTHON if task.has_past else Backend.ONNXRUNTIME)
    unfit = TritonOptions(dynamic_batching=True) if task.has_past else TritonOptions(max_bytes=9)
    with pytest.raises(SpecError, match="python backend"):
        unfit.for_task(task)


def test_a_model_that_generates_text() -> None:
    options = TritonOptions(
        backend=Backend.PYTHON, max_batch_size=4, max_bytes=1 << 30, target="openvino", engine="mine", instances=2
    )
    found = generation_config("m", options)
    assert parse_config(write_config(found, "0" * 64)) == found
    assert (found.name, found.backend, found.max_batch_size) == ("m", "python", 0)
    assert found.model_transaction_policy.decoupled
    (group,) = found.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_MODEL)
    assert all(each.optional for each in found.input)
    assert list(map(tensor, found.input))[:2] == [("text_input", STRING, [1]), ("input_ids", INT64, [-1])]
    assert tensor(found.output[0]) == ("text_output", STRING, [1])
    assert {key: value.string_value for key, value in found.parameters.items()} == {
        "max_rows": "4",
        "max_bytes": str(1 << 30),
        "target": "openvino",
        "engine": "mine",
    }
    usual = generation_config("m", TritonOptions(backend=Backend.PYTHON))
    assert {key: value.string_value for key, value in usual.parameters.items()} == {"max_rows": "8"}


def test_options_that_only_the_model_rules_out() -> None:
    with pytest.raises(SpecError, match="exceeds max_batch_size"):
        made(preferred_batch_size=(9,))
    with pytest.raises(SpecError, match="no bfloat16 kernels for the CPU"):
        made(dtype=Dtype.BFLOAT16, kind=Kind.CPU)
    with pytest.raises(SpecError, match="at least two rows"):
        made("batch=1,sequence=8", backend=Backend.TENSORRT, dynamic_batching=True)
    with pytest.raises(SpecError, match=r"(?s)exceeds the engine's.*at most 4, the limit of profile a:batch=1:1:4"):
        made("a:batch=1:1:4,sequence=8", "b:batch=1,sequence=8", backend=Backend.TENSORRT, max_batch_size=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "complex64"}, "unsupported dtype"),
        ({"shape": [1, "sequence_length"]}, "no dynamic batch axis"),
        ({"shape": ["batch_size"]}, "no dynamic batch axis"),
    ],
    ids=str,
)
def test_tensors_that_triton_cannot_be_told_of(change: dict[str, Any], message: str) -> None:
    graph = GRAPH.model_copy(update={"outputs": [GRAPH.outputs[0].model_copy(update=change)]})
    with pytest.raises(BundleError, match=message):
        model_config("m", graph, Dtype.FLOAT32, [], TritonOptions())


def test_a_text_knows_whether_it_was_changed() -> None:
    text = write_config(made())
    assert is_as_written(text)
    assert noted_digest(text) is None
    noted = write_config(made(), "0" * 64)
    assert is_as_written(noted)
    assert noted_digest(noted) == "0" * 64
    assert not is_as_written(noted.replace("0" * 64, "1" * 64))
    assert not any(map(is_as_written, ("", "\n", text[1:], text + " ", text.replace("count: 1", "count: 2"))))


def test_a_text_that_is_no_config_is_refused() -> None:
    with pytest.raises(BundleError, match="not a valid Triton model configuration"):
        parse_config('nmae: "m"')
