"""Arguments, options and choices that several commands share."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funnel_export.cli.output import GENERAL
from funnel_export.errors import SpecError
from funnel_export.spec.choices import AUTO, PYTORCH, Dtype, Pooling, Recovery, SlotPositions, Task
from funnel_export.spec.funnel import FunnelSpec

NONE = "none"
"""The value for no funnel, or for no run of PyTorch."""
FUNNEL = "Funnel"
"""Heading of the options of a funnel."""

if TYPE_CHECKING:
    TaskName = str
    DtypeName = str
    PytorchName = str
else:  # type checkers do not understand an enum that is made from values

    def _choice(name: str, values: Iterable[str]) -> Any:
        return StrEnum(name, [(value, value) for value in values])

    TaskName = _choice("TaskName", (AUTO, *Task))
    DtypeName = _choice("DtypeName", (AUTO, *Dtype))
    PytorchName = _choice("PytorchName", (*PYTORCH, NONE))


def listed(values: Iterable[Any]) -> str:
    """Several default values as `--help` shows them."""
    return ", ".join(map(str, values))


def one_of(values: Iterable[str]) -> str:
    """The choices of an option that may be given several times; Typer shows those of other options itself."""
    return f"<{'|'.join(values)}>"


def complete_target(incomplete: str) -> list[str]:
    """The targets whose names begin with `incomplete`."""
    from funnel_export.targets.registry import target_names

    return [name for name in target_names() if name.startswith(incomplete)]


BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `export` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=GENERAL)]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Runtime to use, as `doctor` names it. May be given several times.",
        show_default="all that work on this machine",
        autocompletion=complete_target,
    ),
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Use only this engine, plus the runtimes of --target. May be given several times.",
        show_default="all that work on this machine",
    ),
]
Reports = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for the reports, for example if the bundle is read-only.",
        show_default="the bundle's `reports`",
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the random tokens.")]


def default_of(field: str) -> str:
    """The default of a field of `FunnelSpec`."""
    return str(FunnelSpec.__dataclass_fields__[field].default)


Funnel = Annotated[
    str,
    typer.Option(
        metavar="P:R:S",
        help="Pool before layer P, recover before layer R, with stride S; `drop` for S leaves the layers out. `none` "
        "is the dense model, `auto` the funnel that the checkpoint's config names.",
        rich_help_panel=FUNNEL,
    ),
]
PoolingName = Annotated[
    Pooling | None,
    typer.Option(
        help="How the tokens of a window become one slot.", show_default=default_of("pooling"), rich_help_panel=FUNNEL
    ),
]
RecoveryName = Annotated[
    Recovery | None,
    typer.Option(
        help="How a token is updated from its slot after the middle layers. `linear` needs a fitted checkpoint.",
        show_default=default_of("recovery"),
        rich_help_panel=FUNNEL,
    ),
]
SlotPositionsName = Annotated[
    SlotPositions | None,
    typer.Option(
        help="Position of a slot in RoPE and masks: its window's last token, or its own index.",
        show_default=default_of("slot_positions"),
        rich_help_panel=FUNNEL,
    ),
]
Lookahead = Annotated[
    bool,
    typer.Option(
        "--lookahead", help="Also pool an unfinished last window. Not for text generation.", rich_help_panel=FUNNEL
    ),
]


def chosen_funnel(
    funnel: str,
    *,
    pooling: Pooling | None,
    recovery: Recovery | None,
    slot_positions: SlotPositions | None,
    lookahead: bool,
) -> FunnelSpec | str:
    """The funnel that the options describe; `auto` and `none` as they are.

    Raises:
        SpecError: for an invalid funnel, or options of a funnel without one.
    """
    options = {"pooling": pooling, "recovery": recovery, "slot_positions": slot_positions}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if lookahead:
        given["lookahead"] = True
    if given and funnel in (AUTO, NONE):
        raise SpecError(f"{', '.join(given)} without a funnel", got=f"--funnel {funnel}", wanted="--funnel P:R:S")
    return funnel if funnel in (AUTO, NONE) else FunnelSpec.parse(funnel, **given)
