"""What holds for states and batches after every step, as pure functions that list all faults; tests call them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.runtime.batch import Batch, Row
from funnel_export.runtime.state import State, bytes_of, entries_of, slots_of


def faults_of_state(state: State) -> list[str]:
    """What is wrong with a state: lengths, capacity, shapes, dtypes, bytes, and values that are not finite."""
    lengths, capacity = state.lengths, state.capacity
    if lengths.ndim != 1 or lengths.dtype != np.int64:
        return [f"lengths of shape {lengths.shape} and dtype {lengths.dtype}, wanted int64 [batch]"]
    faults = []
    if (lengths < 0).any() or (lengths > capacity).any():
        faults.append(f"lengths {lengths.tolist()} with a capacity of {capacity}")
    if capacity > state.limit:
        faults.append(f"capacity {capacity} with a limit of {state.limit}")
    if set(state.arrays) != set(state.layout):
        return [*faults, f"arrays {sorted(state.arrays)}, wanted {sorted(state.layout)}"]
    for name in state.layout:
        faults += _faults_of_array(state, name)
    wanted_bytes = bytes_of(state.layout, state.rows, capacity)
    if state.nbytes != wanted_bytes:
        faults.append(f"{state.nbytes} bytes, wanted {wanted_bytes}")
    return faults


def _faults_of_array(state: State, name: str) -> list[str]:
    held, array = state.layout[name], state.arrays[name]
    wanted = held.shape_of(state.rows, entries_of(state.capacity, held.stride))
    if array.shape != wanted or array.dtype != held.dtype:
        return [f"{name} has shape {array.shape} in {array.dtype}, wanted {wanted} in {held.dtype}"]
    faults, slots = [], slots_of(state.lengths, held.stride)
    for row, (values, length) in enumerate(zip(np.moveaxis(array, held.axis, 1), state.lengths.tolist(), strict=True)):
        if slots[row] != _windows(length, held.stride):
            faults.append(f"row {row} has {length} tokens and {slots[row]} slots of {held.stride}")
        if not np.isfinite(values[: slots[row]]).all():
            faults.append(f"{name} has values that are not finite in row {row}")
    return faults


def faults_of_step(
    before: NDArray[np.int64], counts: Sequence[int] | NDArray[np.int64], state: State, logits: NDArray[Any]
) -> list[str]:
    """What is wrong after a step that added `counts` tokens to rows of the lengths `before`; logits as it returned."""
    faults = faults_of_state(state)
    if state.lengths.tolist() != (before + np.asarray(counts)).tolist():
        faults.append(f"lengths {state.lengths.tolist()} after {before.tolist()} and {np.asarray(counts).tolist()}")
    if logits.shape[0] != state.rows or not np.isfinite(logits[np.asarray(counts) > 0]).all():
        faults.append(f"logits of shape {logits.shape} that are not finite, or not of {state.rows} rows")
    return faults


def faults_of_batch(batch: Batch) -> list[str]:
    """What is wrong with a batch between two steps, with the states of its rows."""
    held, limit = batch.held, batch.stepper.limit
    faults = faults_of_state(held.state)
    for each in held.apart:
        faults += faults_of_state(each.state)
    if held.state.rows != len(held.together):
        return [*faults, f"{held.state.rows} rows of caches for {len(held.together)} texts"]
    lengths = dict(zip((row.key for row in held.together), held.state.lengths.tolist(), strict=True))
    lengths |= {each.row.key: each.read for each in held.apart}
    for row in held.rows:
        faults += _faults_of_row(row, lengths[row.key], limit)
    if len(set(batch.keys)) < len(batch.keys):
        faults.append(f"keys are repeated: {batch.keys}")
    if len(batch.keys) > batch.max_rows:
        faults.append(f"{len(batch.keys)} texts, wanted at most {batch.max_rows}")
    if batch.max_bytes is not None and held.nbytes > batch.max_bytes:
        faults.append(f"{held.nbytes} bytes, wanted at most {batch.max_bytes}")
    if batch.aligned and len(set((held.state.lengths % batch.stepper.stride).tolist())) > 1:
        faults.append(f"rows of lengths {held.state.lengths.tolist()} do not close their windows together")
    if not 0 <= held.middle_steps <= held.steps:
        faults.append(f"{held.middle_steps} of {held.steps} steps ran the middle")
    return faults


def _faults_of_row(row: Row, length: int, limit: int) -> list[str]:
    """What is wrong with a text whose caches have `length` tokens."""
    faults, prompt, new = [], len(row.request.prompt), len(row.tokens)
    if length != prompt + new - 1 and not (length < prompt and new == 0):
        faults.append(f"text {row.key} has {length} tokens in its caches, of {prompt} in its prompt and {new} new ones")
    if row.request.longest > limit:
        faults.append(f"text {row.key} may have {row.request.longest} tokens, more than {limit}")
    if new >= row.request.max_new_tokens:
        faults.append(f"text {row.key} has {new} new tokens and has not ended")
    return faults


def _windows(tokens: int, stride: int) -> int:
    """Number of windows that `tokens` tokens close: the first closes at token 0, each other `stride` tokens later."""
    return len(range(0, tokens, stride))
