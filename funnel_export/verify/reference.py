"""The reference for every target: eager PyTorch on the bundle's own weights."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.quantized import bare_of
from funnel_export.checkpoint.values import read_values
from funnel_export.errors import BundleError
from funnel_export.exporter.skeleton import build_skeleton
from funnel_export.exporter.weights import match_weights
from funnel_export.funnel import patch_forward, unpatch_forward
from funnel_export.funnel.maps import attach_maps
from funnel_export.funnel.parts import Part, Shape, call_part
from funnel_export.funnel.stored_maps import read_maps
from funnel_export.spec.choices import Dtype, Logits
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import MAPS
from funnel_export.verify.activations import round_activations
from funnel_export.verify.cases import kept_positions, last_token_names
from funnel_export.verify.float64 import Float64
from funnel_export.verify.probe import RangeProbe

REFERENCE_DTYPES = {
    Dtype.FLOAT32: torch.float64,
    Dtype.FLOAT16: torch.float32,
    Dtype.BFLOAT16: torch.float32,
}
"""The dtype of the reference by the bundle's dtype: one step more precise."""


def load_model(bundle: Bundle, dtype: torch.dtype) -> Any:
    """Hugging Face's model with the bundle's own weights, without the funnel; see `load_checkpoint`."""
    return load_checkpoint(Checkpoint.open(bundle.path), bundle.spec, dtype)


def load_checkpoint(source: Checkpoint, spec: ExportSpec, dtype: torch.dtype) -> Any:
    """Hugging Face's model of a checkpoint for a task, without the funnel but with its maps.

    Hugging Face reads config.json itself, so that a key which the export misread shows as a difference. Missing weights
    are refused beforehand, since Hugging Face would initialize them at random.
    """
    match_weights(build_skeleton(source.family, source.config, spec).shapes, source)
    kind = source.family.model_class(spec.task)
    with without_progress_bars(), expecting_maps(kind), computing_in(dtype):
        model: Any = kind.from_pretrained(
            dtype=dtype, attn_implementation="eager", local_files_only=True, **_origin(kind, source)
        )
    attach_maps(source.family.base_of(model), read_maps(spec.funnel, source))
    return model.eval().requires_grad_(False)


def _origin(kind: Any, source: Checkpoint) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where config and weights are; quantized weights are dequantized."""
    options = source.family.load_options(source.config)
    if source.quantization is None:
        return {"pretrained_model_name_or_path": source.path, **options}
    config = kind.config_class.from_pretrained(source.path, local_files_only=True)
    del config.quantization_config
    stored = {name: tensor for name, tensor in source.tensors.items() if bare_of(name) == name} | source.quantized
    weights = {name: torch.from_numpy(read_values(source.path, each)) for name, each in stored.items()}
    return {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights, **options}


@contextlib.contextmanager
def expecting_maps(kind: Any) -> Iterator[None]:
    """Keep Hugging Face from reporting the weights of maps as unexpected, when a model of this class is loaded."""
    name, known = "_keys_to_ignore_on_load_unexpected", kind._keys_to_ignore_on_load_unexpected
    setattr(kind, name, [*(known or []), rf"(^|\.){MAPS}\."])
    try:
        yield
    finally:
        setattr(kind, name, known)


def computing_in(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """The context in which to build and run a model of a dtype; in float64, Hugging Face computes parts in float32."""
    return Float64() if dtype is torch.float64 else contextlib.nullcontext()


def output_options(bundle: Bundle, length: int) -> dict[str, Any]:
    """Arguments with which Hugging Face's model returns logits for the tokens of a row that are compared.

    Rows are run without padding, so the last column is the last token of every row.
    """
    if bundle.spec.task.has_past:
        return {"logits_to_keep": torch.from_numpy(kept_positions(length))}
    return {"logits_to_keep": 1} if bundle.spec.logits is Logits.LAST else {}


class Eager:
    """Hugging Face's model with a bundle's funnel, and its weights or those of another checkpoint.

    For a dense bundle the model is not patched. A probe records the largest values of every run. With a group of
    activations, products with quantized weights round their inputs; see `round_activations`.
    """

    def __init__(
        self,
        bundle: Bundle,
        dtype: torch.dtype,
        probe: RangeProbe | None = None,
        *,
        source: Checkpoint | None = None,
        group: int | None = None,
    ) -> None:
        self.spec = bundle.spec.funnel
        self.dense = self.spec is None
        self.output = bundle.output.name  # the same name as Hugging Face's
        checkpoint = source or Checkpoint.open(bundle.path)
        self.model = load_checkpoint(checkpoint, bundle.spec, dtype)
        if group is not None:
            round_activations(self.model, checkpoint, group)
        self._dtype, self._probe = dtype, probe
        self._bundle = bundle
        self._seen: dict[str, Tensor | None] = {}
        self._last_only = last_token_names(bundle.spec, bundle.architecture.num_hidden_layers)
        if probe is not None:
            probe.watch(self.model)
        if not self.dense:
            patch_forward(self.model, self.spec, self._run)

    def _run(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        results = call_part(name, part, *tensors, shapes=shapes)
        if name in self._seen:
            self._seen[name] = results[0][:, -1:] if name in self._last_only else results[0]
        if self._probe is not None:
            self._probe.see(name, results[0])
        return results

    def run(self, inputs: Mapping[PortKind, NDArray[Any]], boundaries: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Run each row alone and without padding, so that the other rows cannot affect the expected output.

        Args:
            inputs: tokens and mask, [batch, length].
            boundaries: names of boundaries whose hidden states are returned too.

        Returns:
            The model's output and the boundaries by name, each [positions of all rows, width] in the order of the rows;
            of rows' last positions where the bundle's graph has no others.

        Raises:
            BundleError: if PyTorch cannot run the model.
        """
        if self.dense and boundaries:
            patch_forward(self.model, None, self._run)
        rows = []
        try:
            for ids, mask in zip(inputs[PortKind.TOKENS], inputs[PortKind.MASK], strict=True):
                self._seen = dict.fromkeys(boundaries)
                row = torch.from_numpy(ids[mask != 0])[None]
                out = self._forward(row)
                rows.append({self.output: getattr(out, self.output), **self._seen})
        finally:
            if self.dense and boundaries:
                unpatch_forward(self.model)
        return {name: np.concatenate([_array(row[name]) for row in rows]) for name in rows[0]}

    def _forward(self, row: Tensor) -> Any:
        try:
            options = output_options(self._bundle, row.shape[1])
            with torch.no_grad(), computing_in(self._dtype), self._probe or contextlib.nullcontext():
                return self.model(input_ids=row, use_cache=False, **options)
        except Exception as err:
            raise BundleError(
                "eager PyTorch cannot run this bundle, so there is nothing to compare with",
                got=f"{type(err).__name__}: {err}",
                wanted="a checkpoint that Hugging Face runs",
            ) from err

    def close(self) -> None:
        """Free the memory of the weights, without a garbage collection: the patched forward refers to its module."""
        if not self.dense:
            unpatch_forward(self.model)
        del self.model


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor [1, positions, width] or [1, width] as an array [positions, width]."""
    plain = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    array: NDArray[Any] = plain.reshape(-1, tensor.shape[-1]).numpy()
    return array


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide Hugging Face's progress bars for loading and saving: the commands show their own progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
