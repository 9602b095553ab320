"""Builds a plan and streams it to a file, so that it is never in memory twice."""

import time
from collections.abc import Sequence
from typing import Any, BinaryIO

from funnel_export.bundle.ports import Port
from funnel_export.errors import SpecError, TargetRefusedError
from funnel_export.spec.funnel import FunnelSpec, segments_of
from funnel_export.spec.profile import Profile
from funnel_export.targets.tensorrt.flavour import Flavour
from funnel_export.targets.tensorrt.graph import ReadableGraph, readable_graph
from funnel_export.targets.tensorrt.inspection import inspect_plan
from funnel_export.targets.tensorrt.logger import make_logger
from funnel_export.targets.tensorrt.options import TensorRtOptions
from funnel_export.targets.tensorrt.parse import (
    check_product_dtypes,
    count_products,
    describe_failure,
    parse_graph,
    remedy,
)
from funnel_export.targets.tensorrt.products import products_of_network
from funnel_export.targets.tensorrt.progress import Report, make_monitor
from funnel_export.targets.tensorrt.request import BuildRequest

REFIT_FLAGS = {"identical": "REFIT_IDENTICAL", "all": "REFIT"}


def build(flavour: Flavour, request: BuildRequest, report: Report) -> dict[str, Any]:
    """Build a plan and write it.

    Returns:
        Facts about the build: seconds, bytes, layers, flags, matrix products by dtype, those of a quantized graph by
        bits, the inspector's findings (None without a GPU that can load the plan), warnings.

    Raises:
        TargetRefusedError: if the parser or the builder refuses the graph.
        TargetUnavailableError: if the module does not load.
        OSError: if the plan cannot be written, or a weight file read.
    """
    report("parsing the graph", None)
    graph = readable_graph(request.graph)  # it stays alive until the parser and the network are gone
    return _build(flavour, request, graph, report)


def _build(flavour: Flavour, request: BuildRequest, graph: ReadableGraph, report: Report) -> dict[str, Any]:
    """See `build`."""
    trt = flavour.load()
    logger = make_logger(trt)
    funnel = None if request.funnel is None else FunnelSpec.from_dict(request.funnel)
    segments = segments_of(funnel, request.num_layers)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = parse_graph(trt, network, logger, graph, segments)
    products = count_products(trt, network)
    check_product_dtypes(products, request.dtype)
    made = products_of_network(trt, network)
    _mark_outputs((builder, network, parser), request.outputs)
    config = _configure(trt, builder, network, request, report)
    start = time.perf_counter()
    with request.plan.open("wb") as stream:
        written = _write_plan(trt, builder, network, config, stream)
    if written is None:
        names = [network.get_layer(index).name for index in range(network.num_layers)]
        failure = describe_failure(logger.errors, names, segments)
        raise TargetRefusedError(f"{flavour.target} could not build the graph", got=failure, hint=remedy(failure))
    if request.new_timing_cache is not None:
        request.new_timing_cache.write_bytes(config.get_timing_cache().serialize())
    seconds = round(time.perf_counter() - start, 2)
    return {
        "build_seconds": seconds,
        "plan_bytes": written,
        "layers": network.num_layers,
        "builder_flags": [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)],
        "matrix_products": products,
        **({} if made is None else made.facts()),
        "inspected": inspect_plan(trt, logger, request.plan, request.dtype),
        "warnings": [warning for warning in logger.warnings if "Int64 binding" not in warning],
    }


def _mark_outputs(network: tuple[Any, Any, Any], outputs: list[str]) -> None:
    from polygraphy.backend.trt import modify_network_outputs

    if outputs:
        own = [network[1].get_output(index).name for index in range(network[1].num_outputs)]
        modify_network_outputs(network, outputs=[*own, *outputs])


def _configure(trt: Any, builder: Any, network: Any, request: BuildRequest, report: Report) -> Any:
    """The builder's configuration: made by Polygraphy, plus settings that it does not support."""
    from polygraphy.backend.trt import CreateConfig

    options = request.options
    config = CreateConfig(
        profiles=[_profile(profile, request.inputs) for profile in request.profiles],
        tf32=options.tf32,
        builder_optimization_level=options.builder_optimization_level,
        max_aux_streams=options.max_aux_streams,
        memory_pool_limits=None if options.workspace is None else {trt.MemoryPoolType.WORKSPACE: options.workspace},
        weight_streaming=options.weight_streaming,
        strip_plan=options.strip_plan,
        version_compatible=options.version_compatible,
        exclude_lean_runtime=options.exclude_lean_runtime,
        hardware_compatibility_level=_compatibility(trt, options),
        profiling_verbosity=_member(trt.ProfilingVerbosity, "profiling_verbosity", options.profiling_verbosity),
        progress_monitor=make_monitor(trt, report),
    )(builder, network)
    if options.refit != "none":
        config.set_flag(_member(trt.BuilderFlag, "refit", REFIT_FLAGS[options.refit]))
    _set_capabilities(trt, config, options)
    if request.new_timing_cache is not None:
        _set_timings(trt, config, request)
    return config


def _profile(wanted: Profile, inputs: Sequence[Port]) -> Any:
    from polygraphy.backend import trt

    result = trt.Profile()
    for port in inputs:
        result.add(port.name, *wanted.shapes(port.shape))
    return result


def _member(enum: Any, option: str, name: str) -> Any:
    """A member of an enumeration of TensorRT, which may be missing in some versions."""
    try:
        return enum.__members__[name.upper()]
    except KeyError as err:
        raise SpecError(
            f"this version of TensorRT does not support this {option}",
            got=name,
            wanted=", ".join(enum.__members__).lower(),
        ) from err


def _compatibility(trt: Any, options: TensorRtOptions) -> Any:
    name = "hardware_compatibility_level"
    level = options.hardware_compatibility_level
    return None if level == "none" else _member(trt.HardwareCompatibilityLevel, name, level)


def _set_capabilities(trt: Any, config: Any, options: TensorRtOptions) -> None:
    kinds = options.capabilities
    if kinds:
        members = [_member(trt.ComputeCapability, "compute_capabilities", f"SM{k.replace('.', '')}") for k in kinds]
        config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            config.set_compute_capability(member, index)


def _set_timings(trt: Any, config: Any, request: BuildRequest) -> None:
    """Load the timings of earlier builds; TensorRT ignores those of another version or GPU."""
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    cache = config.create_timing_cache(b"")
    for path in request.timing_caches:
        earlier = config.create_timing_cache(path.read_bytes())
        if earlier is not None:
            cache.combine(earlier, ignore_mismatch=False)
        elif path == request.options.timing_cache:
            raise SpecError(
                "the file is not a timing cache of TensorRT; it was left unchanged",
                got=path,
                wanted="a new file, or a timing cache, which the build updates",
                hint="--option timing_cache=FILE with another file",
            )
    config.set_timing_cache(cache, ignore_mismatch=False)


def _write_plan(trt: Any, builder: Any, network: Any, config: Any, stream: BinaryIO) -> int | None:
    """Build and stream the plan to a file; return the number of bytes, None if the builder failed."""
    failures: list[OSError] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # a base that only the module has
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            try:
                return stream.write(data)
            except OSError as err:  # TensorRT would swallow it
                failures.append(err)
                return 0

    built = builder.build_serialized_network_to_stream(network, config, Writer())
    if failures:
        raise failures[0]
    return stream.tell() if built else None
