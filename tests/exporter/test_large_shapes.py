"""Gemma2-2B shapes: exported from a file of holes, so that loading a weight would show."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import onnx
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

EXPORT = """
import re, sys, funnel_export
funnel_export.export(*sys.argv[1:], funnel="6:20:2")
print(int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def make_sparse_checkpoint(folder: Path) -> int:
    """A checkpoint of Gemma2-2B shapes in bfloat16 whose weights are holes in the file; returns their size."""
    folder.mkdir()
    config = Gemma2Config(architectures=["Gemma2ForCausalLM"])
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in Gemma2ForCausalLM(config).named_parameters()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    config.save_pretrained(folder)
    return offset


def test_weights_of_2b_shapes_are_not_loaded(tmp_path: Path) -> None:
    size = make_sparse_checkpoint(tmp_path / "checkpoint")
    arguments = [str(tmp_path / "checkpoint"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", EXPORT, *arguments], capture_output=True, text=True, check=True)
    assert size > 5e9
    assert int(done.stdout) < 1.5e9  # torch and transformers alone take about half of it
    graph = tmp_path / "out" / "model.onnx"
    assert graph.stat().st_size < 2e6
    model = onnx.load(graph, load_external_data=False).graph
    outside = [t for t in model.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) == 26 * 11 + 2
