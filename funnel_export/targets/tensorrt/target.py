"""The targets `tensorrt` and `tensorrt-rtx`."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from funnel_export.bundle.engine import BuiltFor, Engine, Gpus, record_file
from funnel_export.bundle.load import Graph
from funnel_export.checkpoint.quantized import ROW_CODES
from funnel_export.errors import SpecError, TargetRefusedError, TargetUnavailableError
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.quantization import Quantization
from funnel_export.system.atomic import write_bytes
from funnel_export.system.machine import this_platform
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import Availability, Compiled, CompileRequest, check_room_for_engine
from funnel_export.targets.options import options_of_engine
from funnel_export.targets.tensorrt.flavour import TENSORRT, TENSORRT_RTX, Flavour, has_polygraphy
from funnel_export.targets.tensorrt.gpu import Gpu, find_gpu
from funnel_export.targets.tensorrt.logger import make_logger
from funnel_export.targets.tensorrt.options import TensorRtOptions, validate_options
from funnel_export.targets.tensorrt.process import build_in_process
from funnel_export.targets.tensorrt.request import BuildRequest

if TYPE_CHECKING:
    from funnel_export.targets.tensorrt.session import TensorRtSession

PLAN, TIMINGS = "model.plan", "timing.cache"
PORTABLE = ["8.0", "8.6", "8.9", "12.0"]
"""Compute capabilities that a TensorRT-RTX plan supports by default, besides later ones (NVIDIA's documentation)."""


class _Base:
    """Common base of both targets."""

    flavour: ClassVar[Flavour]
    options: ClassVar[type[TensorRtOptions]] = TensorRtOptions
    takes_profiles: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]]
    reuses: ClassVar[tuple[str, ...]] = (TIMINGS,)
    runs_graphs: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.flavour.target

    def availability(self) -> Availability:
        """Whether it is installed and loads, and whether there is a GPU for its engines."""
        version = self.flavour.installed()
        try:
            self.flavour.load()
        except TargetUnavailableError as err:
            return Availability(
                available=False,
                version=version,
                detail=f"{err.what}: {err.details['got']}",
                hint=err.details.get("hint"),
            )
        builder = has_polygraphy()
        lacking = "" if builder else "; does not compile without Polygraphy"
        try:
            gpu = find_gpu()
        except TargetUnavailableError as err:
            compiles = builder and self.flavour.builds_without_gpu
            able = "compiles here; engines do not run here" if compiles else "neither compiles nor runs here"
            detail = f"{able}: {err.what}{lacking}"
            return Availability(available=False, compiles=compiles, version=version, detail=detail)
        if self.flavour is TENSORRT_RTX and not _runs_on(self.flavour.load(), gpu):
            what = f"it does not run on {gpu.name}, compute capability {gpu.compute_capability}"
            detail = f"compiles here for other GPUs: {what}" if builder else what + lacking
            return Availability(available=False, compiles=builder, version=version, detail=detail)
        detail = f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.driver}{lacking}"
        return Availability(available=True, compiles=builder, version=version, detail=detail)

    def supports(self, spec: ExportSpec) -> str | None:  # noqa: ARG002 - a Target's signature
        """See `Target.supports`: all three dtypes; the builder refuses those that a GPU lacks."""
        return None

    def built_for(self, request: CompileRequest) -> BuiltFor:
        """See `Target.built_for`."""
        self.flavour.load_builder()
        _check_quantization(request.graph.spec.quantization)
        options = request.options_as(TensorRtOptions)
        gpu, why = _gpu_or_reason()
        validate_options(options, self.flavour, why)
        if gpu is None and not self.flavour.builds_without_gpu:
            raise TargetUnavailableError(
                f"{self.name} needs a GPU for builds",
                got=why,
                hint="use a machine with a GPU, or --target tensorrt-rtx, which builds without one",
            )
        if self.flavour is TENSORRT_RTX:
            kinds = options.capabilities or PORTABLE
            gpus = Gpus(compute_capabilities=kinds)
            return BuiltFor(device="GPUs of these kinds", platform=this_platform(), gpus=gpus)
        assert gpu is not None
        gpus = Gpus(compute_capabilities=[gpu.compute_capability], driver=gpu.driver)
        return BuiltFor(device=gpu.name, platform=this_platform(), gpus=gpus)

    def engine_name(self, built_for: BuiltFor) -> str:
        """See `Target.engine_name`."""
        kinds = "-".join(f"sm{kind.replace('.', '')}" for kind in built_for.compute_capabilities)
        device = "" if self.flavour is TENSORRT_RTX else "-" + re.sub(r"[^a-z0-9]+", "-", built_for.device.lower())
        return f"{self.name}-{kinds}{device.rstrip('-')}"

    def compile(self, request: CompileRequest, folder: Path, progress: Progress) -> Compiled:
        """See `Target.compile`."""
        options, graph = request.options_as(TensorRtOptions), request.graph
        keeps_timings = self.flavour is TENSORRT
        if not options.strip_plan:
            check_room_for_engine(graph, folder, plain=(ROW_CODES,))
        earlier = [path for path in (options.timing_cache, request.earlier.get(TIMINGS)) if path and path.is_file()]
        facts = build_in_process(
            BuildRequest(
                target=self.flavour.target,
                graph=graph.path,
                plan=folder / PLAN,
                dtype=graph.dtype,
                inputs=graph.inputs,
                outputs=list(request.outputs),
                funnel=None if graph.spec.funnel is None else graph.spec.funnel.to_dict(),
                num_layers=graph.num_layers,
                profiles=list(request.profiles),
                options=options,
                timing_caches=earlier,
                new_timing_cache=folder / TIMINGS if keeps_timings else None,
            ),
            progress,
            request.timeout,
        )
        if options.timing_cache is not None:
            write_bytes(options.timing_cache, (folder / TIMINGS).read_bytes())
        return Compiled(files=[PLAN, *([TIMINGS] if keeps_timings else [])], facts=facts)

    def on_gpu(self, engine: Engine | None) -> bool:  # noqa: ARG002 - a Target's signature
        """See `Target.on_gpu`."""
        return True

    def activation_group(self, engine: Engine) -> int | None:  # noqa: ARG002 - a Target's signature
        """See `Target.activation_group`; always None."""
        return None

    def misfit(self, engine: Engine) -> str | None:
        """See `Target.misfit`."""
        built, version = engine.manifest, self.flavour.load().__version__
        compatible = built.options.get("version_compatible") is True
        if built.version != version and not (compatible and _is_later(version, built.version)):
            return f"it was built with {self.name} {built.version}, but {version} is installed"
        if built.built_for.platform != this_platform():
            return f"it was built for {built.built_for.platform}, but this is {this_platform()}"
        gpu = find_gpu()
        if self.flavour is TENSORRT:
            return _other_gpu(built.built_for, str(built.options.get("hardware_compatibility_level", "none")), gpu)
        return _invalid_by_header(self.flavour.load(), engine)

    def load(
        self,
        graph: Graph,
        *,
        outputs: Sequence[str] = (),
        engine: Engine | None = None,
        timeout: float = SILENCE,
    ) -> "TensorRtSession":
        """See `Target.load`; for intermediate values, it builds a temporary engine with the same options."""
        find_gpu()
        from funnel_export.targets.tensorrt.session import TensorRtSession

        if engine is None:
            raise TargetRefusedError(
                f"{self.name} runs engines, not graphs", got=graph.path, hint="compile the bundle first"
            )
        if not outputs:
            return TensorRtSession(self.flavour, graph, engine)
        options = options_of_engine(TensorRtOptions, engine.manifest.options)
        validate_options(options, self.flavour, None)
        request = CompileRequest(
            graph=graph,
            profiles=tuple(engine.manifest.profiles),
            options=options,
            outputs=tuple(outputs),
            timeout=timeout,
        )
        with tempfile.TemporaryDirectory() as name:
            self.compile(request, Path(name), no_progress)
            files = [record_file(Path(name) / PLAN)]
            manifest = engine.manifest.model_copy(update={"files": files})
            return TensorRtSession(self.flavour, graph, Engine(Path(name), manifest), keep_kernels=False)


class TensorRtTarget(_Base):
    """TensorRT 11: builds on the GPU that the engine is for."""

    flavour: ClassVar[Flavour] = TENSORRT
    files: ClassVar[tuple[str, ...]] = (PLAN, TIMINGS)


class TensorRtRtxTarget(_Base):
    """TensorRT-RTX: builds on any machine, and runs on GeForce and RTX GPUs."""

    flavour: ClassVar[Flavour] = TENSORRT_RTX
    files: ClassVar[tuple[str, ...]] = (PLAN,)


def _check_quantization(quantization: Quantization | None) -> None:
    """Raise `SpecError` for quantized weights that TensorRT cannot read: it takes symmetric codes only."""
    if quantization is not None and not quantization.symmetric:
        raise SpecError(
            "TensorRT cannot read these quantized weights",
            got=quantization,
            wanted="symmetric weights",
            hint="of the bundle before it was quantized, or of the original checkpoint's: "
            f"funnel-export quantize BUNDLE OUT --bits {quantization.bits}",
        )


def _gpu_or_reason() -> tuple[Gpu | None, str | None]:
    try:
        return find_gpu(), None
    except TargetUnavailableError as err:
        return None, err.what


def _runs_on(trt: Any, gpu: Gpu) -> bool:
    """Whether TensorRT-RTX runs on this GPU: one of those that it lists, or a later one.

    It does not list data centre GPUs of the Hopper generation: version 1.7.1 built a plan on an H200, then refused it.
    """
    named = [int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    here = int(gpu.compute_capability.replace(".", ""))
    return here in named or here > max(named)


def _other_gpu(built_for: BuiltFor, level: str, gpu: Gpu) -> str | None:
    """Why a TensorRT plan does not run on this GPU, None if it does."""
    kind = ", ".join(built_for.compute_capabilities)
    here = f"{gpu.name} with compute capability {gpu.compute_capability}"
    if level == "ampere_plus":
        fits = int(gpu.compute_capability.split(".")[0]) >= 8
    elif level == "same_compute_capability":
        fits = gpu.compute_capability == kind
    else:
        fits = (gpu.name, gpu.compute_capability) == (built_for.device, kind)
    return None if fits else f"it was built for {built_for.device} with compute capability {kind}, but this is {here}"


def _invalid_by_header(trt: Any, engine: Engine) -> str | None:
    """Why this GPU and driver do not run a plan, by TensorRT-RTX's check of its header; None if they do."""
    runtime = trt.Runtime(make_logger(trt))
    with engine.file.open("rb") as stream:
        validity, diagnostics = runtime.get_engine_validity(stream.read(runtime.engine_header_size))
    if validity != trt.EngineValidity.INVALID:
        return None
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    why = ", ".join(name.lower() for name, flag in known if int(flag) & int(diagnostics)) or "no reason was given"
    kinds = ", ".join(engine.manifest.built_for.compute_capabilities)
    return f"its header is not valid here: {why}; it was built for compute capability {kinds}"


def _is_later(version: str, built: str) -> bool:
    """Whether `version` has the major number of `built`, and is the same or newer."""
    found, wanted = ([int(part) for part in re.findall(r"\d+", text)[:3]] for text in (version, built))
    return found[:1] == wanted[:1] and found >= wanted
