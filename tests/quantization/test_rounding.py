"""Rounding to codes: every weight is off by at most half a step, and codes are those of the definition."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rounded_by_loops import dequantized

from funnel_export import CheckpointError, SpecError
from funnel_export.checkpoint.values import pack, unpack
from funnel_export.quantization.rounding import round_to_nearest
from funnel_export.spec.quantization import Part, Quantization

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
WEIGHTS = hnp.arrays(np.float32, (3, 32), elements=st.floats(-1e4, 1e4, width=32))


@given(weights=WEIGHTS, bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32]), symmetric=st.booleans())
def test_a_weight_is_off_by_at_most_half_a_step(weights: np.ndarray, bits: int, block: int, symmetric: bool) -> None:
    rounded = round_to_nearest(weights, bits, block, FLOAT32, symmetric=symmetric)
    steps, zeros = (np.repeat(each.astype(np.float64), block, axis=1) for each in (rounded.scales, rounded.zeros))
    error = np.abs((rounded.codes - zeros) * steps - weights)
    assert (error <= (0.5 if symmetric else 1.0) * steps * (1 + 1e-5)).all()
    assert rounded.codes.min() >= (-(2 ** (bits - 1)) if symmetric else 0)
    assert rounded.codes.max() < 2 ** (bits - 1 if symmetric else bits)
    assert (rounded.scales > 0).all()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_the_definition(bits: int, symmetric: bool, dtype: np.dtype) -> None:
    weights = np.random.default_rng(bits).standard_normal((6, 64)).astype(np.float32)
    rounded = round_to_nearest(weights, bits, 32, dtype, symmetric=symmetric)
    steps, zeros = (np.repeat(each.astype(np.float32), 32, axis=1) for each in (rounded.scales, rounded.zeros))
    values = ((rounded.codes - zeros) * steps).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(values, dequantized(weights, bits, 32, symmetric=symmetric, dtype=dtype))


def test_a_block_of_zeros_stays_zero() -> None:
    rounded = round_to_nearest(np.zeros((2, 16), np.float32), 4, 16, BFLOAT16, symmetric=True)
    assert not rounded.codes.any()
    assert np.isfinite(rounded.scales.astype(np.float32)).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = np.ones((2, 16), np.float32)
    weights[1, 3] = value
    with pytest.raises(CheckpointError, match="infinite or not numbers"):
        round_to_nearest(weights, 8, 16, FLOAT32, symmetric=True)


@given(codes=hnp.arrays(np.int8, (3, 10), elements=st.integers(-8, 7)))
def test_packed_codes_are_read_back(codes: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(codes), signed=True), codes)
    np.testing.assert_array_equal(unpack(pack(codes + 8), signed=False), codes + 8)


def test_the_first_code_is_in_the_low_bits() -> None:
    assert pack(np.array([[1, -2]])).tolist() == [[0xE1]]


def test_a_block_that_does_not_divide_the_inputs_is_made_smaller() -> None:
    assert [Quantization(bits=4, block_size=128).block_of(inputs) for inputs in (256, 3648, 48, 40)] == [
        128,
        64,
        16,
        None,
    ]
    assert Quantization(bits=8).block_of(256) is None


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 3},
        {"bits": True},
        {"bits": 4, "block_size": 48},
        {"bits": 4, "block_size": None},
        {"bits": 8, "symmetric": 1},
        {"bits": 8, "keep": ("router",)},
        {"bits": 8, "keep": tuple(Part)},
        {"bits": 8, "method": "magic"},
    ],
)
def test_invalid_quantizations_are_refused(values: dict) -> None:
    with pytest.raises(SpecError):
        Quantization(**values)


def test_a_quantization_is_the_same_after_a_round_trip() -> None:
    for quantization in (Quantization(bits=8), Quantization(bits=4, symmetric=False, keep=("mlp", "head"))):
        assert Quantization.from_dict(quantization.to_dict()) == quantization
