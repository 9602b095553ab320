"""Who takes part in the race of decoding: this package's bundles in their runtimes, and other tools' models.

Everything is exported into a folder. One that is kept is used again: what it has is not exported anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export import Exporter
from peers import named, other_runner
from peers_groups import say

from funnel_export import Quantization, compile_bundle, export, load_bundle
from funnel_export.bundle.engine import engine_names
from funnel_export.bundle.load import Bundle
from funnel_export.commands.compile import default_engine_name
from funnel_export.latency.latency_report import Model
from funnel_export.latency.runner import RunnerSetup
from funnel_export.latency.trials import Runner
from funnel_export.spec.choices import Dtype, Task

FUNNELS = {"dense": "none", "S=2": "3:9:2", "S=4": "3:9:4"}
"""Half of the layers run on slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a bundle of this package stores its weights, and computes."""

    dtype: Dtype = Dtype.FLOAT32
    quantization: Quantization | None = None


FORMS = {
    "float32": Form(),
    "bfloat16": Form(dtype=Dtype.BFLOAT16),
    "int8": Form(quantization=Quantization(bits=8)),
    "int4": Form(quantization=Quantization(bits=4)),
    "int4/32": Form(quantization=Quantization(bits=4, block_size=32)),
}
"""`int4/32` has blocks of 32 weights, as onnxruntime-genai, in place of 64."""
ROUNDED = {
    "onnxruntime": {"session.qdq_matmulnbits_accuracy_level": "4"},
    "openvino": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
}
"""Options with which a runtime rounds activations to 8 bits, as it and the other tools do by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Models of this package in one form and one runtime."""

    form: str
    """A key of `FORMS`."""
    target: str | None
    """None for eager PyTorch."""
    models: tuple[str, ...] = tuple(FUNNELS)
    rounded: bool = False
    """Whether activations are rounded to 8 bits; else they are exact."""


def _quantized(form: str) -> tuple[Series, ...]:
    """Small weights in both runtimes, with exact activations and rounded ones, beside wider weights."""
    own = (
        series
        for target in ROUNDED
        for series in (
            Series(form="float32", target=target, models=("dense",)),
            Series(form=form, target=target),
            Series(form=form, target=target, models=("dense", "S=2"), rounded=True),
        )
    )
    return (*own, Series(form="bfloat16", target="openvino", models=("dense", "S=2")))


OWN = {
    "float32": tuple(Series(form="float32", target=target) for target in (None, *ROUNDED)),
    "bfloat16": (
        Series(form="bfloat16", target="openvino"),
        Series(form="bfloat16", target=None, models=("dense",)),
    ),
    "int8": _quantized("int8"),
    "int4": (
        *_quantized("int4"),
        Series(form="int4/32", target="onnxruntime", models=("dense",)),
        Series(form="int4/32", target="onnxruntime", models=("dense",), rounded=True),
    ),
}
"""What this package enters in each group of a race."""
OTHERS = {
    "float32": {"genai": "genai", "intel": "intel", "llama": "llama_f32"},
    "bfloat16": {"intel": "intel"},
    "int8": {"intel": "intel_int8", "llama": "llama_q8_0"},
    "int4": {"genai": "genai_int4", "intel": "intel_int4", "llama": "llama_q4_0"},
}
"""What other tools enter in each group: names in `exporters.py` by tool."""
TOOLS = ("genai", "intel", "llama")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model in a runtime in a precision."""

    runtime: str
    precision: str
    """For example `int4`, or `int4 rounded` with rounded activations."""
    model: str = "dense"
    """A key of `FUNNELS`."""
    runner: Runner | None = None
    """None if it cannot run here."""
    missing: str = ""
    """Why it cannot."""
    form: str | None = None
    """A key of `FORMS`; None for another tool's."""
    bundle: Bundle | None = None
    """The bundle that it runs, for the bytes that it reads."""
    weight_bytes: int | None = None
    """Bytes of the weights of another tool's model; all are read in a step."""

    @property
    def name(self) -> str:
        """For example `openvino bfloat16` or `openvino bfloat16, S=2`."""
        return named(self.runtime, self.model, self.precision)


class Exports:
    """A checkpoint, and the folder into which it is exported."""

    def __init__(self, checkpoint: Path, folder: Path, pythons: Mapping[str, str | None]) -> None:
        """The interpreters of other tools by name; None for one that is not here."""
        self._checkpoint = checkpoint
        self._folder = folder
        self._pythons = pythons

    def entries(self, group: str) -> list[Entry]:
        """All that take part in a group: dense and funnels of one run right after each other."""
        own = [self._own(series, model) for series in OWN[group] for model in series.models]
        return own + [self._other(tool, group, exporter) for tool, exporter in OTHERS[group].items()]

    def bundle(self, model: str, form: str) -> Bundle:
        """The checkpoint by this package."""
        out = self._folder / f"{model}-{form.replace('/', '-')}"
        if out.exists():
            return load_bundle(out)
        say(f"exporting {model} in {form}")
        made = FORMS[form]
        return export(
            self._checkpoint,
            out,
            funnel=FUNNELS[model],
            dtype=made.dtype,
            quantization=made.quantization,
            task=Task.TEXT_GENERATION_WITH_PAST,
        )

    def _own(self, series: Series, model: str) -> Entry:
        bundle, runtime = self.bundle(model, series.form), series.target or "eager"
        precision = f"{series.form} rounded" if series.rounded else series.form
        engines = tuple(_engines(bundle, series.target)) if series.rounded and series.target else ()
        setup = RunnerSetup(bundle=bundle.path, target=series.target, engines=engines)
        kind = Model.DENSE if model == "dense" else Model.FUNNEL
        runner = Runner.of(named(runtime, model, precision), kind, bundle.spec.dtype, setup)
        return Entry(runtime=runtime, precision=precision, model=model, runner=runner, form=series.form, bundle=bundle)

    def _other(self, tool: str, precision: str, name: str) -> Entry:
        """Another tool, with what its own exporter makes of the checkpoint."""
        python, out = self._pythons[tool], self._folder / f"{tool}-{precision}"
        done = out.with_name(f"{out.name}.done")
        if not done.exists():
            say(f"exporting with {tool} in {precision}")
            why = Exporter(label=tool, exporter=name, python=python, checkpoint=self._checkpoint).why_not(out)
            if why:
                return Entry(runtime=tool, precision=precision, missing=why)
            done.touch()
        if python is None:
            return Entry(runtime=tool, precision=precision, missing=f"not run: no --{tool}-python was given")
        half = precision == Dtype.BFLOAT16
        runner = other_runner(named(tool, "dense", precision), f"{tool}_bf16" if half else tool, python, out)
        sizes = [file.stat().st_size for file in out.rglob("*") if file.suffix in (".data", ".bin", ".gguf")]
        stored = 2 if half else 1  # float32 on the disk, converted when loaded
        return Entry(runtime=tool, precision=precision, runner=runner, weight_bytes=sum(sizes) // stored)


def _engines(bundle: Bundle, target: str) -> Iterator[str]:
    """Names of engines of all graphs that round activations, compiled if they are not there."""
    for graph in bundle.graphs.values():
        name = default_engine_name(graph, f"rounded-{target}")
        if name not in engine_names(bundle):
            say(f"compiling {bundle.path.name}/{name}")
            compile_bundle(bundle, target, graph=graph.role, options=ROUNDED[target], name=name)
        yield name


def forms_of(groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Model and form of all bundles of some groups, each once."""
    yield from dict.fromkeys(
        (model, series.form) for group in groups for series in OWN[group] for model in series.models
    )
