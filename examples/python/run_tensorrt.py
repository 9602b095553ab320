"""Run a plan that was compiled for TensorRT or TensorRT-RTX with that runtime, numpy and cuda-bindings alone.

python run_tensorrt.py my-bundle/engines/NAME 2 5 6 7 --runtime tensorrt_rtx
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from common import BAD_INPUT, NOT_HERE, arguments, fail, read_manifest, read_tokens, report, verify
from numpy.typing import NDArray

try:
    from cuda.bindings import runtime as cuda
except ImportError:
    cuda = None


def ok(result: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime returned."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA: {error.name}")
    return values[0] if values else None


def choose_profile(profiles: list[dict[str, Any]], batch: int, sequence: int) -> int:
    """Number of the profile that takes the shape, and of several the one tuned for the nearest length."""

    def fits(profile: dict[str, Any]) -> bool:
        sizes = ("batch_size", batch), ("sequence_length", sequence)
        return all(profile["axes"][axis]["min"] <= size <= profile["axes"][axis]["max"] for axis, size in sizes)

    fitting = [number for number, profile in enumerate(profiles) if fits(profile)]
    if not fitting:
        fail(BAD_INPUT, f"no optimization profile takes batch {batch}, sequence {sequence}; the plan has {profiles}")
    return min(fitting, key=lambda number: abs(profiles[number]["axes"]["sequence_length"]["opt"] - sequence))


def import_runtime(name: str) -> Any:
    """The runtime's module, once it is certain that it has a device to run on."""
    if cuda is None:
        fail(NOT_HERE, "there is no cuda.bindings here; pip install cuda-bindings")
    try:
        trt = importlib.import_module(name)
    except ImportError as err:
        fail(NOT_HERE, f"{err}; pip install {name.replace('_', '-')}")
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        fail(NOT_HERE, f"no NVIDIA driver or GPU here: {error.name}; a plan can be read only where it can run")
    return trt


def deserialize(trt: Any, plan: bytes, host_code: bool) -> Any:
    """The engine; runtime and logger live as long as it, for it holds them."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        hint = "" if host_code else "; a version-compatible plan needs --allow-host-code"
        fail(BAD_INPUT, f"{trt.__name__} {trt.__version__} cannot read the plan: see its messages{hint}")
    if engine.streamable_weights_size > 0:  # built for weight streaming; to be set before there is a context
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine


def make_context(engine: Any, cache_file: Path) -> tuple[Any, Any]:
    """An execution context, and for TensorRT-RTX the cache of what it compiles, with what earlier runs compiled."""
    config = engine.create_runtime_config()
    if not hasattr(config, "create_runtime_cache"):
        return engine.create_execution_context(), None
    cache = config.create_runtime_cache()
    if cache_file.is_file() and not cache.deserialize(cache_file.read_bytes()):
        print(f"{cache_file} is of another GPU, driver or version: compiling anew")
    config.set_runtime_cache(cache)
    return engine.create_execution_context(config), cache


def infer(
    trt: Any, engine: Any, context: Any, profile: int, inputs: dict[str, NDArray[np.int64]]
) -> tuple[str, NDArray[Any]]:
    """Name and values of the output, as numpy holds it; bfloat16 as float32."""
    stream = ok(cuda.cudaStreamCreate())
    if not context.set_optimization_profile_async(profile, int(stream)):
        raise RuntimeError(f"profile {profile} was refused")
    for name, values in inputs.items():
        context.set_input_shape(name, values.shape)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    output = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
    bfloat16 = engine.get_tensor_dtype(output) == trt.DataType.BF16
    dtype = np.uint16 if bfloat16 else trt.nptype(engine.get_tensor_dtype(output))
    host = {**inputs, output: np.empty(tuple(context.get_tensor_shape(output)), dtype)}
    device = {name: ok(cuda.cudaMalloc(values.nbytes)) for name, values in host.items()}
    for name, address in device.items():
        context.set_tensor_address(name, int(address))
    kind = cuda.cudaMemcpyKind
    for name, values in inputs.items():
        to_device = kind.cudaMemcpyHostToDevice
        ok(cuda.cudaMemcpyAsync(device[name], values.ctypes.data, values.nbytes, to_device, stream))
    if not context.execute_async_v3(int(stream)):
        raise RuntimeError("the plan did not run: see the messages above")
    result, to_host = host[output], kind.cudaMemcpyDeviceToHost
    ok(cuda.cudaMemcpyAsync(result.ctypes.data, device[output], result.nbytes, to_host, stream))
    ok(cuda.cudaStreamSynchronize(stream))
    for address in device.values():
        ok(cuda.cudaFree(address))
    ok(cuda.cudaStreamDestroy(stream))
    return output, (result.astype(np.uint32) << 16).view(np.float32) if bfloat16 else result


def main(args: argparse.Namespace) -> None:
    """Run one batch."""
    ids, mask = read_tokens(args)
    manifest = read_manifest(args.folder)
    file = args.folder / "model.plan"
    try:
        plan = file.read_bytes()
    except OSError as err:
        fail(BAD_INPUT, str(err))
    verify(file, plan, manifest)
    profile = choose_profile(manifest.get("profiles") or [], *ids.shape)
    trt = import_runtime(args.runtime)
    engine = deserialize(trt, plan, args.allow_host_code)
    cache_file = args.runtime_cache or args.folder / "runtime.cache"
    context, cache = make_context(engine, cache_file)
    name, values = infer(trt, engine, context, profile, {"input_ids": ids, "attention_mask": mask})
    report(name, values, mask, args.save)
    if cache is not None:
        cache_file.write_bytes(cache.serialize())


if __name__ == "__main__":
    parser = arguments(__doc__.splitlines()[0], "BUNDLE/engines/NAME")
    parser.add_argument("--runtime", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt")
    parser.add_argument(
        "--allow-host-code", action="store_true", help="for a version-compatible plan: it holds CPU code"
    )
    parser.add_argument("--runtime-cache", type=Path, help="of TensorRT-RTX; by default runtime.cache beside the plan")
    main(parser.parse_args())
