"""What the code asks of TensorRT 11 and TensorRT-RTX is in their own classes; so is all that the tests' fakes offer.

TensorRT's Python module is a wheel of its own. Its libraries are gigabytes: libraries of ten empty functions stand in
for them, so its classes and enumerations are there, and nothing runs.
"""

import ast
import ctypes
import importlib
import importlib.util
import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import fakes
import pytest
from following import Class, Follower, Function, Instance, Real, signatures, takes

from funnel_export.targets import tensorrt
from funnel_export.targets.tensorrt.build import REFIT_FLAGS
from funnel_export.targets.tensorrt.flavour import TENSORRT
from funnel_export.targets.tensorrt.options import TensorRtOptions
from funnel_export.targets.tensorrt.target import PORTABLE

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(str(tensorrt.__file__)).parent.glob("*.py"))
EXAMPLE = ROOT / "examples" / "python" / "run_tensorrt.py"
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
MODULES = ("tensorrt", "tensorrt_rtx")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """TensorRT's module over libraries of empty functions, and TensorRT-RTX's."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
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
    return {"tensorrt": importlib.import_module("tensorrt_bindings"), "tensorrt_rtx": rtx}


@pytest.fixture(scope="module")
def followed(modules: dict[str, Any]) -> dict[str, Follower]:
    """The sources, read once for each module."""
    return {name: follow(SOURCES, modules[name], name) for name in MODULES}


def follow(paths: list[Path], module: Any, name: str) -> Follower:
    results = {
        "Flavour.load": Real(module),
        "CreateConfig.__call__": Instance(module.IBuilderConfig),
        "OnnxParser.get_error": Instance(module.ParserError),  # the docstring has the name of C++
        "import_runtime": Real(module),
    }
    choices = {"TENSORRT": name == "tensorrt", "TENSORRT_RTX": name == "tensorrt_rtx"}
    return Follower(paths, "funnel_export.targets.tensorrt", module, results, choices)


def names(facts: Any) -> set[str]:
    """Members as `Class.member`."""
    return {f"{fact.owner}.{fact.member}".removeprefix(".") for fact in facts}


def test_rtx_has_all_that_the_code_asks_for(followed: dict[str, Follower]) -> None:
    rtx = followed["tensorrt_rtx"]
    assert sorted(rtx.missing) == []
    assert sorted(rtx.refused) == []


def test_tensorrt_has_all_that_the_code_asks_it_for(followed: dict[str, Follower]) -> None:
    """All but compute capabilities, an option that this target refuses."""
    assert "compute_capabilities" in TENSORRT.refuses
    assert names(followed["tensorrt"].missing) == {
        "ComputeCapability",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
    }
    assert sorted(followed["tensorrt"].refused) == []


def test_the_scan_reaches_every_object_and_file(followed: dict[str, Follower]) -> None:
    """What is not followed is not compared, so no argument may stay unknown that could be one of the module's."""
    assert unknown(followed["tensorrt_rtx"]) == {"gpu.py:_text:error", "gpu.py:_text:runtime"}, "CUDA's"
    only_rtx = {"target.py:_invalid_by_header:trt", "target.py:_runs_on:trt"}
    assert unknown(followed["tensorrt"]) - unknown(followed["tensorrt_rtx"]) == only_rtx
    using = {fact.place.partition(":")[0] for fact in followed["tensorrt_rtx"].asked}
    parsing = {"graph.py", "parse.py", "products.py"}
    assert using == {"build.py", "inspection.py", "logger.py", "progress.py", "session.py", "target.py"} | parsing
    for follower in followed.values():
        assert names(follower.asked) >= {
            "BuilderFlag.EDITABLE_TIMING_CACHE",
            "IBuilderConfig.get_timing_cache",
            "ILayer.get_output",
            "ITensor.dtype",
            "OnnxParser.parse_model_proto",
            "OnnxParserRefitter.refit_model_proto",
            "ParserError.local_function_stack",
            "EngineInspector.get_engine_information",
            "ICudaEngine.weight_streaming_budget_v2",
            "IExecutionContext.set_optimization_profile_async",
            "TensorIOMode.INPUT",
        }
        assert names(follower.called) >= {
            "Builder.__init__",
            "OnnxParser.load_initializer",
            "OnnxParserRefitter.__init__",
            "OnnxParserRefitter.load_initializer",
            "CreateConfig.__init__",
            "ITimingCache.combine",
            "IExecutionContext.execute_async_v3",
        }
    only = names(followed["tensorrt_rtx"].asked) - names(followed["tensorrt"].asked)
    assert only >= {"EngineValidity.INVALID", "IRuntimeConfig.cuda_graph_strategy", "IRuntimeCache.serialize"}


def unknown(follower: Follower) -> set[str]:
    """Arguments of any kind whose value is not known, but those of methods that the module calls."""
    found = set()
    called = [id(method) for _, method in overrides(follower)]
    for function in follower.functions.values():
        if id(function) in called:
            continue
        for argument in [*function.node.args.args, *function.node.args.kwonlyargs]:
            kind = argument.annotation
            if isinstance(kind, ast.Name) and kind.id == "Any" and function.values.get(argument.arg) is None:
                found.add(f"{function.file}:{function.name}:{argument.arg}")
    return found


def test_a_wrong_call_and_a_missing_member_are_found(modules: dict[str, Any], tmp_path: Path) -> None:
    """As in code that reads `build_it(trt, trt.Builder(logger))`."""
    (tmp_path / "wrong.py").write_text(WRONG)
    follower = Follower([tmp_path / "wrong.py"], "nothing", modules["tensorrt"], {"load": Real(modules["tensorrt"])})
    assert names(follower.missing) == {"BuilderFlag.FAST", "INetworkDefinition.get_outptu", "ILayer.names"}
    assert sorted(line.partition(" takes ")[0] for line in follower.refused) == [
        "wrong.py:12: Builder.create_network",
        "wrong.py:15: ILayer.get_output",
        "wrong.py:18: Builder.__init__",
        "wrong.py:8: INetworkDefinition.num_layers is not set",
    ]


WRONG = """
def load():
    return __import__("tensorrt")

class Built:
    def __init__(self, network):
        self.network = network
        self.network.num_layers = 3
        self.network.get_outptu(0)

def build_it(trt, builder):
    builder.create_network(flag=1)
    built = Built(builder.create_network(trt.BuilderFlag.FAST))
    layers = [built.network.get_layer(index) for index in range(3)]
    return [(layer.names, layer.get_output()) for layer in layers]

trt = load()
build_it(trt, trt.Builder(trt.Logger(), verbose=True))
"""


def overrides(follower: Follower) -> Iterator[tuple[type, Function]]:
    """The methods that the code's classes define for the module to call."""
    for kind in follower.classes.values():
        for base in kind.bases:
            if isinstance(base, Real) and not isinstance(base.it, Class):
                for value in kind.values.values():
                    if isinstance(value, Function) and value.name != "__init__":
                        yield base.it, value


@pytest.mark.parametrize("name", MODULES)
def test_methods_that_the_module_calls_have_its_arguments(name: str, followed: dict[str, Follower]) -> None:
    found = {f"{base.__name__}.{method.name}": method for base, method in overrides(followed[name])}
    assert set(found) == {
        "ILogger.log",
        "IProgressMonitor.phase_start",
        "IProgressMonitor.step_complete",
        "IProgressMonitor.phase_finish",
        "IStreamWriter.write",
    }
    for base, method in overrides(followed[name]):
        arguments = [argument.arg for argument in method.node.args.args[1:]]
        known = signatures(getattr(base, method.name), method.name)
        if method.name == "write":  # without the size, which bytes have: builds for TensorRT-RTX call it so
            known = [each.replace(parameters=[*each.parameters.values()][:1]) for each in known]
        assert any(takes(each, arguments, {}) for each in known)


def members_by_option() -> Iterator[tuple[str, str, str]]:
    """The enumerations whose members the code finds by an option: enumeration, option, member."""
    tree = ast.parse((Path(str(tensorrt.__file__)).parent / "build.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_member":
            enum, option = node.args[0], node.args[1]
            assert isinstance(enum, ast.Attribute)
            name = {"name": "hardware_compatibility_level"}.get(getattr(option, "id", ""), getattr(option, "value", ""))
            values = get_args(TensorRtOptions.model_fields[name].annotation)
            if name == "refit":
                assert set(REFIT_FLAGS) == set(values) - {"none"}
                values = tuple(REFIT_FLAGS.values())
            if name == "compute_capabilities":
                values = tuple(f"SM{kind.replace('.', '')}" for kind in PORTABLE)
            assert values
            yield from ((enum.attr, name, value.upper()) for value in values)


def test_every_value_of_an_option_is_a_member(modules: dict[str, Any]) -> None:
    found = list(members_by_option())
    assert {option for _, option, _ in found} == {
        "profiling_verbosity",
        "hardware_compatibility_level",
        "refit",
        "compute_capabilities",
    }
    for enum, option, member in found:
        for name in MODULES:
            if name == "tensorrt_rtx" or option not in TENSORRT.refuses:
                assert member in getattr(modules[name], enum).__members__


def test_the_example_asks_for_what_is_there(modules: dict[str, Any]) -> None:
    """It asks a configuration whether it can create a cache: TensorRT's cannot."""
    found = {name: follow([EXAMPLE], modules[name], name) for name in MODULES}
    assert [sorted(each.refused) for each in found.values()] == [[], []]
    assert names(found["tensorrt_rtx"].missing) == set()
    assert names(found["tensorrt"].missing) == {
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.set_runtime_cache",
    }
    assert names(found["tensorrt_rtx"].asked) >= {"Logger.WARNING", "IRuntimeCache.deserialize", "DataType.BF16"}


REAL_NAMES = {
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
    "Inspector": "EngineInspector",
    "RtxEngine": "ICudaEngine",
    "Config": "IRuntimeConfig",
    "Cache": "IRuntimeCache",
}
"""What the module does not name: its objects are the results of methods."""
NOT_OF_THE_MODULE = {"Cuda", "Severity", "DataType"}
"""Classes of the fakes that are CUDA's, or compared as part of another."""


def load_example_fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules that the example imports in its tests."""
    found = {}
    for name in MODULES:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "examples" / "fakes" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found[name])
        spec.loader.exec_module(found[name])
    return found


def test_fakes_of_tests_offer_nothing_that_the_real_modules_lack(modules: dict[str, Any]) -> None:
    compared: set[str] = set()
    results = {"tensorrt": (fakes.Engine, fakes.Context, fakes.Inspector)}
    results["tensorrt_rtx"] = (*results["tensorrt"], fakes.RtxEngine, fakes.Config, fakes.Cache)
    for name, version in (("tensorrt", "11.4.0.106"), ("tensorrt_rtx", "1.7.1.116")):
        made = fakes.make_module(fakes.Cuda(), version)
        assert excess_of_module(vars(made), modules[name], compared) == []
        assert fakes.DataType.__members__.keys() <= modules[name].DataType.__members__.keys()
        for kind in results[name]:
            compared.add(kind.__name__)
            assert excess(kind, getattr(modules[name], REAL_NAMES[kind.__name__])) == []
    own = {value.__name__ for value in vars(fakes).values() if is_own(value, "fakes")}
    assert own - compared == NOT_OF_THE_MODULE


def test_fakes_of_the_example_offer_nothing_that_the_real_modules_lack(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fake in load_example_fakes(monkeypatch).items():
        compared: set[str] = set()
        assert excess_of_module(vars(fake), modules[name], compared) == []
        assert compared >= {"Runtime", "Logger", "Engine", "Context", "DataType", "TensorIOMode"}


def is_own(value: Any, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


def excess_of_module(fake: dict[str, Any], real: Any, compared: set[str]) -> list[str]:
    """What a module of fakes offers beyond the real one; adds the classes that were compared."""
    found = []
    for name, value in fake.items():
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        wanted = getattr(real, REAL_NAMES.get(name, name), None)
        if wanted is None:
            found.append(name)
        elif isinstance(value, type):
            compared.add(value.__name__)
            found += excess(value, wanted, constructed=name not in REAL_NAMES)
        elif inspect.isfunction(value) and not like(value, wanted, name):
            found.append(f"{name}{inspect.signature(value)}")
    return found


def excess(fake: type, real: Any, *, constructed: bool = False) -> list[str]:
    """What a class of fakes offers beyond the real one: members, arguments, values of an enumeration."""
    if issubclass(fake, Enum):
        found = [name for name in fake.__members__ if name not in real.__members__]
        known = [name for name in fake.__members__ if name not in found]
        return found + [n for n in known if issubclass(fake, int) and int(fake[n]) != int(real.__members__[n])]
    found = []
    for each in reversed(fake.__mro__[:-1]):
        for name, value in vars(each).items():
            if name.startswith("_") and not (name == "__init__" and constructed):
                continue
            wanted = getattr(real, name, None)
            if isinstance(value, type):
                found += [f"{name}.{member}" for member in excess(value, wanted)]
            elif inspect.isfunction(value) and not like(value, wanted, name):
                found.append(f"{fake.__name__}.{name}{inspect.signature(value)}")
            elif not inspect.isfunction(value) and (not hasattr(real, name) or inspect.isroutine(wanted)):
                found.append(f"{fake.__name__}.{name}")
    return found


def like(fake: Any, real: Any, name: str) -> bool:
    """Whether the real function takes every call that the fake takes, by position and by name."""
    known = signatures(real, name)
    own = [each for each in inspect.signature(fake).parameters.values() if each.name != "self"]
    fewest = sum(each.default is inspect.Parameter.empty for each in own)
    calls = [[each.name for each in own[:count]] for count in range(fewest, len(own) + 1)]
    return all(
        any(takes(each, given, {}) for each in known) and any(takes(each, [], dict.fromkeys(given)) for each in known)
        for given in calls
    )


def test_an_excess_is_found(modules: dict[str, Any]) -> None:
    class Engine:
        num_io_tensors = 3
        num_bindings = 3

        def get_tensor_name(self, index: int) -> str:
            return ""

        def get_tensor_mode(self, name: str, index: int = 0) -> int:
            return 0

        def get_tensor_type(self, name: str) -> int:
            return 0

    class Mode(Enum):
        INPUT = 1
        SIDEWAYS = 2

    class Severity(int, Enum):
        ERROR = 2

    real = modules["tensorrt"]
    assert [line.partition("(")[0] for line in excess(Engine, real.ICudaEngine)] == [
        "Engine.num_bindings",
        "Engine.get_tensor_mode",
        "Engine.get_tensor_type",
    ]
    assert excess(Mode, real.TensorIOMode) == ["SIDEWAYS"]
    assert excess(Severity, real.ILogger.Severity) == ["ERROR"]


def test_fakes_of_cuda_offer_nothing_that_its_bindings_lack() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError
    )
    file = ROOT / "tests" / "examples" / "fakes" / "cuda" / "bindings" / "runtime.py"
    defined = {
        node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    functions = {name for name in vars(fakes.Cuda) if name.startswith("cuda")}
    assert len(functions) > 10
    assert sorted((functions | defined - {"leaks"}) - set(dir(runtime))) == []
