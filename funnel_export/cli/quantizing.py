"""Options of quantized weights, which `export` and `quantize` share."""

from typing import Annotated, Any

import typer

from funnel_export.cli.options import one_of
from funnel_export.errors import SpecError
from funnel_export.spec.defaults import CALIBRATION_TOKENS
from funnel_export.spec.quantization import BITS, BLOCKS, DEFAULT_BLOCKS, Method, Part, Quantization

QUANTIZATION = "Quantization"
"""Heading of these options."""
DEFAULT_BITS = 8

Bits = Annotated[
    int | None,
    typer.Option(
        metavar=f"<{'|'.join(map(str, BITS))}>",
        help="Bits of a stored weight; the embedding has 8 in any case.",
        rich_help_panel=QUANTIZATION,
    ),
]
Block = Annotated[
    int | None,
    typer.Option(
        metavar=f"<{'|'.join(map(str, reversed(BLOCKS)))}>",
        help="Weights of an output that share a scale.",
        show_default=f"{DEFAULT_BLOCKS[4]} with 4 bits, all with 8",
        rich_help_panel=QUANTIZATION,
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric",
        help="Without or with zero points. TensorRT takes symmetric weights only.",
        show_default="symmetric",
        rich_help_panel=QUANTIZATION,
    ),
]
Keep = Annotated[
    list[Part] | None,
    typer.Option(
        metavar=one_of(Part),
        help="Part of the model that is not quantized. May be given several times.",
        show_default=False,
        rich_help_panel=QUANTIZATION,
    ),
]
MethodName = Annotated[
    Method | None,
    typer.Option(
        help="How codes are chosen: `rtn` rounds to nearest, `gptq` lowers the error of outputs on texts.",
        show_default=str(Method.RTN),
        rich_help_panel=QUANTIZATION,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PLACE",
        help="Texts for `gptq`, as for `evaluate`. May be given several times.",
        show_default=False,
        rich_help_panel=QUANTIZATION,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Use at most N tokens of the texts.",
        show_default=str(CALIBRATION_TOKENS),
        rich_help_panel=QUANTIZATION,
    ),
]


def chosen_quantization(
    bits: int | None,
    *,
    block: int | None,
    symmetric: bool | None,
    keep: list[Part] | None,
    method: Method | None,
) -> Quantization | None:
    """The quantization that the options describe, None without `--bits`.

    Raises:
        SpecError: for invalid values, or options of a quantization without bits.
    """
    options = {"block_size": block, "symmetric": symmetric, "keep": tuple(keep or ()) or None, "method": method}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if bits is not None:
        return Quantization(bits=bits, **given)
    if given:
        raise SpecError(f"{', '.join(given)} without --bits", got="no --bits", wanted="--bits 8 or --bits 4")
    return None
