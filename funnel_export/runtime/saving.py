"""Saved caches: the state of a text in one safetensors file, for a later process with the same bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from funnel_export.bundle.load import Bundle, check_made_from
from funnel_export.bundle.record import SCHEMA, Digest, Record, Role, SchemaVersion
from funnel_export.bundle.weights import WeightRecords
from funnel_export.errors import BundleError
from funnel_export.runtime.cache import RuntimeCache
from funnel_export.runtime.state import State, entries_of
from funnel_export.system.atomic import write_bytes
from funnel_export.system.room import no_room

KEY = "funnel_export"
"""Key in the file's metadata; the value is a `SavedCache` as JSON, which describes what the cache was made with."""
LENGTHS, REAL = "lengths", "real"
"""Names of the tensors beside those of the state: `State.lengths` and `RuntimeCache.real`."""
HINT = "read the prompt again and save its cache again"


class SavedCache(Record):
    """What a saved cache was made with."""

    schema_version: SchemaVersion = SCHEMA
    graph_digests: dict[Role, Digest]
    weights: WeightRecords


def save_cache(cache: RuntimeCache, bundle: Bundle, path: Path) -> None:
    """Write a cache to a safetensors file, completely or not at all.

    Args:
        cache: of a model of this bundle.
        bundle: the bundle.
        path: the file. An earlier saved cache is replaced.

    Raises:
        BundleError: if the file exists and is not a saved cache, if it cannot be written, or if the disk is full.
    """
    if path.is_symlink() or (path.exists() and not _is_saved(path)):
        raise BundleError(
            "the file is not a saved cache; it was not replaced", got=path, wanted="a new file", hint="use another name"
        )
    state = cache.state
    longest = int(state.lengths.max(initial=0))
    tensors = {name: _tensor(array[state.place(name, longest)]) for name, array in state.arrays.items()}
    tensors |= {LENGTHS: torch.from_numpy(state.lengths), REAL: torch.from_numpy(cache.real)}
    digests = {role: graph.sha256 for role, graph in bundle.manifest.graphs.items()}
    made = SavedCache(graph_digests=digests, weights=bundle.manifest.weights)
    try:
        write_bytes(path, save(tensors, {KEY: made.model_dump_json()}))
    except OSError as err:
        raise no_room(err, path.parent) or BundleError(
            "the cache cannot be written", got=err, wanted=f"to create {path}"
        ) from err


def load_cache(path: Path, bundle: Bundle, empty: State) -> RuntimeCache:
    """Read a saved cache.

    Args:
        path: the file.
        bundle: the bundle that it must have been made with.
        empty: a state of the bundle without rows; it becomes the cache's.

    Raises:
        BundleError: if the file is damaged, is not a saved cache, or was made with another bundle.
    """
    try:
        with safe_open(path, "pt") as file:
            made = SavedCache.model_validate_json((file.metadata() or {}).get(KEY, ""))
            check_made_from(made, bundle, "the saved cache", HINT)
            # Copied, since the tensors may be maps of the file, which may change.
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValidationError) as err:
        raise BundleError(
            "this is not a saved cache of this version of funnel_export",
            got=f"{path}: {str(err).splitlines()[0]}",
            wanted="a file of FunnelModelForCausalLM.save_cache",
            hint=HINT,
        ) from err
    lengths, real = _counts(found, empty.limit, path)
    longest = int(lengths.max(initial=0))
    arrays = {name: _array(found[name]) for name in empty.layout if name in found}
    for name, held in empty.layout.items():
        wanted = held.shape_of(len(lengths), entries_of(longest, held.stride))
        got = arrays.get(name)
        if got is None or got.shape != wanted or got.dtype != held.dtype:
            _refuse(path, f"{name} {None if got is None else (got.dtype, got.shape)}", f"{held.dtype} {wanted}")
    empty.arrays, empty.lengths, empty.capacity = arrays, lengths, longest
    cache = RuntimeCache(empty)
    cache.real = real
    return cache


def _counts(found: dict[str, torch.Tensor], limit: int, path: Path) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The lengths of the rows and the real columns."""
    lengths, real = (found.get(name, torch.zeros(0)).numpy() for name in (LENGTHS, REAL))
    fit = lengths.ndim == 1 and lengths.dtype == np.int64 and real.ndim == 2 and real.dtype == np.bool_
    if not fit or len(lengths) != len(real) or not len(lengths):
        _refuse(path, f"{LENGTHS} {lengths.shape}, {REAL} {real.shape}", "[batch] and [batch, columns]")
    if (real.sum(axis=1) != lengths).any() or (lengths > limit).any():
        _refuse(path, f"rows of {lengths.tolist()} tokens", f"as many as there are real columns, at most {limit}")
    return lengths, real


def _refuse(path: Path, got: str, wanted: str) -> None:
    raise BundleError("the saved cache is damaged", got=f"{path}: {got}", wanted=wanted, hint=HINT)


def _is_saved(path: Path) -> bool:
    """Whether a file is a saved cache, of any bundle."""
    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """An array as a tensor; NumPy's bfloat16 is not torch's."""
    plain = np.ascontiguousarray(array)
    if plain.dtype.name == "bfloat16":
        return torch.from_numpy(plain.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(plain)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """The opposite of `_tensor`."""
    import ml_dtypes

    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
