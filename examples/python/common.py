"""What the Python examples share: token ids, files that are what the manifest says, a report of the output."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

SCHEMA = 2
BAD_INPUT, NOT_HERE = 2, 3
"""Exit codes: the input is wrong; the runtime does not work on this machine."""


def fail(code: int, message: str) -> NoReturn:
    """End the program with a message on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def arguments(description: str, folder: str) -> argparse.ArgumentParser:
    """The arguments that every example takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help=folder)
    parser.add_argument("ids", type=int, nargs="*", help="token ids of one row")
    parser.add_argument("--ids-file", type=Path, help="token ids, one row a line; shorter rows are padded on the right")
    parser.add_argument("--pad", type=int, default=0, help="the id that pads; pad_token_id of config.json (default 0)")
    parser.add_argument("--save", type=Path, help="write the output there, as float32 in .npy")
    return parser


def read_tokens(args: argparse.Namespace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, both [batch, sequence]."""
    rows = [args.ids] if args.ids else []
    if args.ids_file is not None:
        try:
            rows += [[int(word) for word in line.split()] for line in args.ids_file.read_text().splitlines() if line]
        except (OSError, ValueError) as err:
            fail(BAD_INPUT, f"no token ids: {err}")
    if not rows or not all(rows):
        fail(BAD_INPUT, "no token ids; give some, as: 2 5 6 7, or --ids-file FILE")
    shape = len(rows), max(map(len, rows))
    ids, mask = np.full(shape, args.pad, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return ids, mask


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a bundle or of an engine."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as err:
        fail(BAD_INPUT, f"no manifest of a bundle or an engine: {err}")
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA:
        fail(BAD_INPUT, f"{folder / 'manifest.json'} is not a manifest of schema version {SCHEMA}")
    return manifest


def verified_files(manifest: dict[str, Any]) -> dict[str, str]:
    """The sha256 of the files that a manifest has a digest of: an engine's files, or a bundle's graphs, by name."""
    records = manifest.get("files") or list((manifest.get("graphs") or {}).values())
    return {Path(record["file"]).name: record["sha256"] for record in records}


def verify(file: Path, content: bytes, manifest: dict[str, Any]) -> None:
    """End the program unless a file is the one that the manifest names: engines are code, and graphs become code."""
    wanted = verified_files(manifest).get(file.name)
    got = hashlib.sha256(content).hexdigest()
    if got != wanted:
        fail(BAD_INPUT, f"{file} is not the file that manifest.json names: sha256 {got}, wanted {wanted}")


def report(name: str, values: NDArray[Any], mask: NDArray[np.int64], save: Path | None) -> None:
    """Print shape and statistics of an output, and for logits the best ids at the last token of each row."""
    values = values.astype(np.float32)
    print(f"{name} {list(values.shape)} min {values.min():.6g} max {values.max():.6g} mean {values.mean():.6g}")
    if name == "logits":
        last = mask.sum(axis=1) - 1
        rows = values[np.arange(len(values)), last] if values.ndim == 3 else values
        for number, row in enumerate(rows):
            best = np.argsort(-row, kind="stable")[:5]
            print(f"row {number} best " + " ".join(f"{index}:{row[index]:.4f}" for index in best))
    if save is not None:
        np.save(save, values)
