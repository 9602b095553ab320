"""Run a bundle's graph, or the engine that was compiled from it for ONNX Runtime, with ONNX Runtime and numpy alone.

python run_onnxruntime.py my-bundle 2 5 6 7
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import BAD_INPUT, NOT_HERE, arguments, fail, read_manifest, read_tokens, report, verified_files, verify


def open_session(folder: Path, provider: str) -> ort.InferenceSession:
    """A session on `model.onnx`, once every file that the manifest has a digest of is that file."""
    manifest = read_manifest(folder)
    if manifest.get("dtype") == "bfloat16" and provider == "CPUExecutionProvider":
        fail(NOT_HERE, "ONNX Runtime's CPU provider has no bfloat16 kernels")
    for name in verified_files(manifest):
        file = folder / name
        try:
            verify(file, file.read_bytes(), manifest)
        except OSError as err:
            fail(BAD_INPUT, str(err))
    if provider not in ort.get_available_providers():
        fail(NOT_HERE, f"this ONNX Runtime has no {provider}; it has {', '.join(ort.get_available_providers())}")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=[provider])
    if session.get_providers()[0] != provider:  # a provider that cannot be loaded is replaced without an error
        fail(NOT_HERE, f"{provider} does not work here; ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def main(args: argparse.Namespace) -> None:
    """Run one batch."""
    ids, mask = read_tokens(args)
    session = open_session(args.folder, args.provider)
    output = session.get_outputs()[0]
    if output.type == "tensor(bfloat16)":
        fail(NOT_HERE, "numpy has no bfloat16; take the output by C++, or run the graph by TensorRT")
    (values,) = session.run([output.name], {"input_ids": ids, "attention_mask": mask})
    report(output.name, np.asarray(values), mask, args.save)


if __name__ == "__main__":
    parser = arguments(__doc__.splitlines()[0], "the bundle, or BUNDLE/engines/NAME of an onnxruntime engine")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="execution provider")
    main(parser.parse_args())
