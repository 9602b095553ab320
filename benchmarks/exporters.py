"""One exporter on one checkpoint, in a process of its own: seconds, seconds in imports, peak memory.

    python benchmarks/exporters.py export NAME CHECKPOINT OUT FUNNEL
    python benchmarks/exporters.py reference CHECKPOINT FILE FUNNEL
    python benchmarks/exporters.py compare OUT FILE
    python benchmarks/exporters.py versions

`export.py` runs it, in the environment of each exporter: it imports nothing at the top that one of them may lack.
The last line of stdout is JSON.
"""

import builtins
import functools
import importlib
import json
import runpy
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gguf_file import to_gguf
from measure import peak_gb

sys.path.remove(str(Path(__file__).parent))  # exporters find what they would find without this folder

PACKAGES = (
    *("funnel-export", "onnxruntime-genai", "optimum-onnx", "optimum", "optimum-intel", "xllamacpp", "gguf"),
    *("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "nncf"),
)
LENGTH = 200
"""Tokens of the row that results are compared on: more than the small checkpoint's sliding window of 128."""


class ImportClock:
    """Seconds that imports take from now on, wherever they stand; an import inside another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        builtins.__import__ = self._timed(builtins.__import__)
        importlib.import_module = self._timed(importlib.import_module)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        return wrapper


def funnel_export(checkpoint: str, out: str, funnel: str) -> None:
    """This package, as its command line runs it."""
    _run_module("funnel_export", f"export {checkpoint} {out} --funnel {funnel} --task text-generation")


def torch_onnx(checkpoint: str, out: str, _: str) -> None:
    """torch.onnx.export of the loaded model, with its weights in a file beside the graph."""
    import torch
    from transformers import Gemma2ForCausalLM

    model = _load(Gemma2ForCausalLM, checkpoint)
    ids = torch.ones((2, 8), dtype=torch.long)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    Path(out).mkdir()
    torch.onnx.export(
        model,
        (),
        str(Path(out) / "model.onnx"),
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False},
        dynamic_shapes={"input_ids": axes, "attention_mask": axes, "use_cache": None},
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        opset_version=20,
        dynamo=True,
        external_data=True,
    )


def genai(checkpoint: str, out: str, _: str, *, more: str = "") -> None:
    """onnxruntime-genai's model builder, as its command line runs it."""
    cache = str(Path(out) / "cache")
    _run_module("onnxruntime_genai.models.builder", f"-i {checkpoint} -o {out} -p fp32 -e cpu -c {cache}{more}")


def genai_last(checkpoint: str, out: str, _: str) -> None:
    """The same for prompts: logits of the last token only."""
    genai(checkpoint, out, _, more=" --extra_options prune_lm_head=true")


def genai_int4(checkpoint: str, out: str, _: str) -> None:
    """onnxruntime-genai's model builder with weights of 4 bits."""
    cache = str(Path(out) / "cache")
    _run_module("onnxruntime_genai.models.builder", f"-i {checkpoint} -o {out} -p int4 -e cpu -c {cache}")


def intel(checkpoint: str, out: str, _: str, *, weights: str = "fp32") -> None:
    """optimum-intel, as its command line runs it: OpenVINO's format with the cache inside."""
    arguments = f"export openvino --model {checkpoint} --task text-generation-with-past --library transformers"
    _run_module("optimum.commands.optimum_cli", f"{arguments} --weight-format {weights} {out}")


def intel_int8(checkpoint: str, out: str, funnel: str) -> None:
    """The same with weights of 8 bits."""
    intel(checkpoint, out, funnel, weights="int8")


def intel_int4(checkpoint: str, out: str, funnel: str) -> None:
    """The same with weights of 4 bits in groups of 64; the default of 128 does not divide the MLP's 3648."""
    intel(checkpoint, out, funnel, weights="int4 --group-size 64")


def llama_f32(checkpoint: str, out: str, _: str) -> None:
    """A GGUF file for llama.cpp, whose own converter is not on PyPI."""
    to_gguf(Path(checkpoint), Path(out), "F32")


def llama_q8_0(checkpoint: str, out: str, _: str) -> None:
    """The same with matrices in blocks of 8 bits."""
    to_gguf(Path(checkpoint), Path(out), "Q8_0")


def llama_q4_0(checkpoint: str, out: str, _: str) -> None:
    """The same with matrices in blocks of 4 bits."""
    to_gguf(Path(checkpoint), Path(out), "Q4_0")


def optimum(checkpoint: str, out: str, _: str) -> None:
    """optimum-onnx, as its command line runs it; that includes its own comparison with PyTorch."""
    arguments = f"export onnx --model {checkpoint} --task text-generation --library transformers {out}"
    _run_module("optimum.commands.optimum_cli", arguments)


EXPORTERS = {
    function.__name__: function
    for function in (
        *(funnel_export, torch_onnx, genai, genai_last, genai_int4, optimum),
        *(intel, intel_int8, intel_int4, llama_f32, llama_q8_0, llama_q4_0),
    )
}


def _run_module(name: str, arguments: str) -> None:
    """`python -m name arguments` in this process."""
    sys.argv = [name, *arguments.split()]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def _load(cls: Any, checkpoint: str) -> Any:
    import torch

    return cls.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()


def export(name: str, checkpoint: str, out: str, funnel: str) -> dict[str, Any]:
    """Run one exporter; `call_seconds` is what is left of its run without its imports."""
    clock = ImportClock()
    start = time.perf_counter()
    EXPORTERS[name](checkpoint, out, funnel)
    seconds = time.perf_counter() - start - clock.seconds
    return {"call_seconds": round(seconds, 2), "import_seconds": round(clock.seconds, 2), "peak_gb": peak_gb()}


def reference(checkpoint: str, file: str, funnel: str) -> dict[str, Any]:
    """Write a row of tokens and the logits that eager PyTorch gives for it."""
    import numpy as np
    import torch
    from transformers import Gemma2ForCausalLM

    from funnel_export import FunnelSpec, apply_funnel

    model = _load(Gemma2ForCausalLM, checkpoint)
    if funnel != "none":
        apply_funnel(model, FunnelSpec.parse(funnel))
    ids = np.random.default_rng(0).integers(4, 4096, (1, LENGTH))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    np.savez(file, ids=ids, logits=logits)
    return {"finite": bool(np.isfinite(logits).all())}


def compare(out: str, file: str) -> dict[str, Any]:
    """Run the graph of a folder in ONNX Runtime and compare its logits with the reference."""
    import numpy as np

    wanted = np.load(file)
    run = _run_genai if (Path(out) / "genai_config.json").exists() else _run_onnxruntime
    scale = wanted["logits"].astype(np.float64)
    error = run(out, wanted["ids"]) - scale
    return {
        "max_rel": float(np.abs(error).max() / np.abs(scale).max()),
        "rms_rel": float(np.sqrt((error**2).mean() / (scale**2).mean())),
    }


def _run_onnxruntime(out: str, ids: Any) -> Any:
    """The logits of the one graph in a folder."""
    import numpy as np
    import onnxruntime

    (graph,) = Path(out).rglob("*.onnx")
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    return session.run(["logits"], {value.name: made[value.name] for value in session.get_inputs()})[0]


def _run_genai(out: str, ids: Any) -> Any:
    """The same by onnxruntime-genai, which makes the buffers that its graphs want as inputs."""
    import numpy as np
    import onnxruntime_genai

    model = onnxruntime_genai.Model(out)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=ids.shape[1] + 1)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(ids.astype(np.int32))
    return generator.get_output("logits")


def versions() -> dict[str, str]:
    """The packages that this environment has."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    commands: dict[str, Callable[..., Any]] = {f.__name__: f for f in (export, reference, compare, versions)}
    result = commands[command](*rest)
    print()  # after a progress bar without an end of line
    print(json.dumps(result))
