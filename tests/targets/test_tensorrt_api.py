"""What the code calls is in TensorRT 11 and in TensorRT-RTX, by their own classes; so is what the tests' fakes offer.

TensorRT's Python module is a wheel of its own. Its libraries are gigabytes: libraries of ten empty functions stand in
for them, so its classes and enumerations are there, and nothing runs.
"""

import ast
import ctypes
import importlib.util
import inspect
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

from funnel_export.targets import tensorrt

SOURCES = sorted(Path(str(tensorrt.__file__)).parent.glob("*.py"))
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "getInferLibVersion",
    "initLibNvInferPlugins",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
)
RTX_ONLY = {"ComputeCapability", "CudaGraphStrategy", "EngineInvalidityDiagnostics", "EngineValidity"}
"""What the code asks TensorRT-RTX alone for."""
POLYGRAPHY = {"Profile"}
"""What is called `trt` where Polygraphy's module is meant."""
MEMBERS = {
    "Builder": {"create_network", "build_serialized_network_to_stream"},
    "IBuilderConfig": {"set_flag", "get_flag", "create_timing_cache", "set_timing_cache", "get_timing_cache"},
    "ITimingCache": {"combine", "serialize"},
    "INetworkDefinition": {"get_output", "num_outputs", "get_layer", "num_layers"},
    "ILayer": {"name", "type", "get_output"},
    "ITensor": {"name", "dtype"},
    "OnnxParser": {"parse_from_file", "get_error", "num_errors"},
    "ParserError": {
        *("node_name", "node_operator", "desc", "code", "func", "file", "line", "node", "local_function_stack"),
    },
    "OnnxParserRefitter": {"refit_from_file"},
    "Refitter": {"refit_cuda_engine"},
    "Runtime": {"engine_host_code_allowed", "deserialize_cuda_engine"},
    "ICudaEngine": {
        *("weight_streaming_budget_v2", "get_weight_streaming_automatic_budget", "num_io_tensors", "get_tensor_name"),
        *("get_tensor_dtype", "get_tensor_mode", "create_execution_context", "create_engine_inspector"),
    },
    "IExecutionContext": {
        *("execute_async_v3", "set_input_shape", "set_tensor_address", "get_tensor_shape"),
        "set_optimization_profile_async",
    },
    "EngineInspector": {"get_engine_information"},
    "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"},
    "IStreamWriter": {"write"},
    "ILogger": {"log"},
}
"""What the code calls of each class."""
RTX_MEMBERS = {
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "ICudaEngine": {"create_runtime_config"},
    "IRuntimeConfig": {"create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"},
    "IRuntimeCache": {"serialize", "deserialize"},
    "Runtime": {"get_engine_validity", "engine_header_size"},
}
OBJECTS = {
    *("builder", "config", "cache", "earlier", "network", "parser", "error", "refitter", "runtime", "loaded", "engine"),
    *("plan", "context", "layer", "product"),
}
"""Variables that hold TensorRT's objects in the sources."""


@pytest.fixture(scope="module")
def tensorrt11(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TensorRT's module over libraries of empty functions."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here, for the libraries that stand in")
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for name in LIBRARIES:
        build = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(folder / "empty.c")]
        subprocess.run(build, check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings.tensorrt")


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT-RTX's module."""
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)


def chain(node: ast.expr) -> list[str]:
    """The names of an attribute of an attribute: `trt.ILogger.Severity` is three; nothing if it does not begin so."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def attributes() -> Iterator[tuple[str, list[str]]]:
    """Every attribute that the sources ask for, with the file."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (names := chain(node)):
                yield path.name, names


def named() -> set[tuple[str, ...]]:
    """What is asked of the module itself: classes, enumerations and their members."""
    found = [names for _, names in attributes()]
    own = {tuple(names[1:]) for names in found if names[0] == "trt"}
    own |= {tuple(names[2:]) for names in found if names[:2] == ["self", "_trt"]}
    return {names for names in own if names and not names[0].startswith("__") and names[0] not in POLYGRAPHY}


def lacks(module: Any, names: tuple[str, ...]) -> bool:
    for name in names:
        if name.startswith("__") or not hasattr(module, name):
            return not name.startswith("__")
        module = getattr(module, name)
    return False


def test_every_name_is_in_both_modules(tensorrt11: Any, rtx: Any) -> None:
    wanted = named()
    assert {("BuilderFlag", "EDITABLE_TIMING_CACHE"), ("TensorIOMode", "INPUT"), ("Runtime",)} <= wanted
    assert {names[0] for names in wanted} >= RTX_ONLY
    assert sorted(names for names in wanted if lacks(rtx, names)) == []
    missing = {names[0] for names in wanted if lacks(tensorrt11, names)}
    assert missing <= RTX_ONLY
    assert {"ComputeCapability", "EngineInvalidityDiagnostics", "EngineValidity"} <= missing


def test_every_method_is_in_both_modules(tensorrt11: Any, rtx: Any) -> None:
    for module, table in ((tensorrt11, MEMBERS), (rtx, MEMBERS), (rtx, RTX_MEMBERS)):
        for kind, members in table.items():
            assert [name for name in sorted(members) if not hasattr(getattr(module, kind), name)] == []


def test_the_tables_have_every_method_that_is_called() -> None:
    known = set().union(*MEMBERS.values(), *RTX_MEMBERS.values())
    called = set()
    for file, names in attributes():
        if file in ("build.py", "inspection.py", "parse.py", "session.py"):
            names = [name for name in names if name != "self"]
            if names[0].lstrip("_") in OBJECTS and len(names) > 1:
                called.add(names[1])
    ours = {
        "manifest",
        "path",
        "name",
        "file",
        "errors",
        "get",
        "open",
        "target",
        "funnel",
    }  # of this package's own values
    assert sorted(called - known - ours) == []


def test_options_name_members(tensorrt11: Any) -> None:
    wanted = {
        "BuilderFlag": {"REFIT", "REFIT_IDENTICAL", "EDITABLE_TIMING_CACHE"},
        "ProfilingVerbosity": {"NONE", "LAYER_NAMES_ONLY", "DETAILED"},
        "HardwareCompatibilityLevel": {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
        "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    }
    for enum, names in wanted.items():
        assert names <= getattr(tensorrt11, enum).__members__.keys()


FAKES = {fakes.Engine: "ICudaEngine", fakes.Context: "IExecutionContext"}


def public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}


@pytest.mark.parametrize("fake", FAKES, ids=lambda kind: kind.__name__)
def test_fakes_offer_nothing_that_the_real_classes_lack(fake: type, tensorrt11: Any, rtx: Any) -> None:
    assert public(fake)
    assert sorted(public(fake) - set(dir(getattr(rtx, FAKES[fake])))) == []
    rtx_only = {"create_runtime_config"} - set(dir(tensorrt11.ICudaEngine))
    assert sorted(public(fake) - set(dir(getattr(tensorrt11, FAKES[fake]))) - rtx_only) == []


def test_the_fake_cache_is_a_runtime_cache(rtx: Any) -> None:
    assert public(fakes.Cache) <= set(dir(rtx.IRuntimeCache))


@pytest.mark.parametrize("version", ["11.4.0.106", "1.7.1.116"])
def test_the_fake_module_offers_nothing_that_the_real_ones_lack(version: str, tensorrt11: Any, rtx: Any) -> None:
    real = rtx if version.startswith("1.") else tensorrt11
    offered = {name for name in vars(fakes.make_module(fakes.Cuda(), version)) if not name.startswith("__")}
    assert sorted(offered - set(dir(real))) == []
