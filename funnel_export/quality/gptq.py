"""GPTQ (Frantar et al., arXiv:2210.17323) for one product, by Intel's Neural Compressor.

The library rounds the weights of one input after the other, and moves what is left of each over to the inputs that are
still to be rounded, so that the product's outputs on the texts change least.
"""

import logging
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import transformers  # noqa: F401 - the library fails if somebody else imports it later
from torch import Tensor, nn

from funnel_export.checkpoint.values import not_finite
from funnel_export.errors import CheckpointError
from funnel_export.quality.packages import load_package
from funnel_export.quantization.rounding import Rounded, as_stored

PACKAGE = "neural-compressor"
DAMPING = 0.01
"""Share of the mean square of the inputs that is added to the square of each; the library's default."""
STEP = 128
"""Inputs of a product with one scale whose errors are moved on together; the library's default."""


def load_gptq() -> Any:
    """The library's module; raises `SpecError` if it is not installed."""
    logging.getLogger("neural_compressor").disabled = True  # it logs at the console: the machine, and every product
    return load_package("neural_compressor.torch.algorithms.weight_only.gptq", "method gptq", "gptq")


def library() -> str:
    """Name and version of the library."""
    return f"{PACKAGE} {version(PACKAGE)}"


class Product:
    """A product whose inputs are seen first, and whose weights are rounded afterwards."""

    def __init__(self, linear: nn.Linear, bits: int, block_size: int, *, symmetric: bool, dtype: np.dtype[Any]) -> None:
        """Begin with no inputs.

        Args:
            linear: the product.
            bits: bits of a code.
            block_size: inputs that share a scale; divides them.
            symmetric: codes are -2^(bits-1) to 2^(bits-1) - 1 and zero points 0; else 0 to 2^bits - 1.
            dtype: dtype in which scales are stored.
        """
        self._module = load_gptq()
        self._solver = self._module.GPTQ(linear, linear.weight)
        self._bits, self._symmetric, self._dtype = bits, symmetric, dtype
        self._block = None if block_size == linear.in_features else block_size

    def see(self, inputs: Tensor) -> None:
        """Add inputs, [..., inputs], to the sums of their products, [inputs, inputs] in float32."""
        self._solver.add_batch(inputs.flatten(0, -2), None)

    def finish(self) -> None:
        """Take the sums as they are for all weights; raises `CheckpointError` if they are not finite."""
        sums = self._solver.H
        if not torch.isfinite(sums).all():
            raise not_finite("texts that give a product infinite inputs", "finite hidden states")
        squares = torch.diagonal(sums)
        squares[squares == 0] = squares.mean().clamp(min=1)  # the library sets weights of unseen inputs to 0
        self._sums = sums

    def round(self, weights: Tensor) -> Rounded:
        """Round the weights of some outputs, [outputs, inputs] in float32.

        Raises:
            CheckpointError: if a weight is infinite or not a number, or the library fails.
        """
        if not torch.isfinite(weights).all():
            raise not_finite("no finite range", "finite weights")
        self._solver.H, self._solver.quantizer = self._sums.clone(), self._quantizer()
        width = self._block or -1
        try:
            scales, _, zeros, values = self._solver.fasterquant(
                weights.clone(), blocksize=self._block or STEP, percdamp=DAMPING, groupsize=width
            )
        except RuntimeError as err:
            raise CheckpointError(
                "GPTQ cannot be computed", got=err, wanted="varied texts", hint="more texts, or --method rtn"
            ) from err
        return self._codes(values, scales, zeros)

    def _codes(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Rounded:
        """What is stored of the library's weights, which are (code - zero point) * scale without an error."""
        blocks = values.reshape(len(values), scales.shape[1], -1)
        points = torch.zeros_like(zeros) if self._symmetric else zeros
        codes = ((blocks / scales[..., None]).round() + points[..., None]).reshape(values.shape)
        stored = scales.numpy().astype(self._dtype)
        return Rounded(codes.to(torch.int16).numpy(), stored, points.to(torch.int16).numpy())

    def _quantizer(self) -> Any:
        """The library's choice of scales; they are rounded to their dtype before the codes are chosen."""
        quantizer, find = self._module.Quantizer(), self._module.Quantizer.find_params
        symmetric, dtype = self._symmetric, self._dtype  # a reference to self would keep the weights and sums in memory

        def find_params(x: Tensor, weight: bool = False) -> None:
            # With positive weights only, the library would choose half the scale of a symmetric block.
            find(quantizer, torch.cat([x, -x], dim=1) if symmetric else x, weight=weight)
            stored = as_stored(quantizer.scale.numpy(), dtype)
            quantizer.scale = torch.from_numpy(stored.astype(np.float32))

        quantizer.configure(
            {
                "bits": self._bits,
                "sym": self._symmetric,
                "dtype": "int",
                "mse": False,
                "perchannel": True,
                "use_double_quant": False,
                "double_quant_sym": False,
            }
        )
        quantizer.find_params = find_params
        return quantizer
