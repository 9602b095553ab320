"""Options of a build, from `--option key=value`: checked by name and value before anything is built."""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from funnel_export.errors import SpecError

OptionsT = TypeVar("OptionsT", bound="Options")

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Threads that an engine may ask for here: more would be an attack or a mistake."""


class Options(BaseModel):
    """Base of every target's options; each field's description is what the command line shows of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def recorded(self) -> dict[str, str | int | float | bool]:
        """What was asked for beyond the defaults, as an engine's manifest keeps it."""
        return self.model_dump(mode="json", exclude_defaults=True)


def parse_options(kind: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Options from texts or values.

    Raises:
        SpecError: naming every option that does not exist or has another kind of value.
    """
    strange = [
        f"{name}: {value!r}" for name, value in values.items() if not isinstance(value, str | int | float | bool)
    ]
    if strange and kind.model_config.get("extra") == "allow":
        raise SpecError("an option's value is a text or a number", got="\n".join(strange))
    try:
        return kind.model_validate(dict(values))
    except ValidationError as err:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'together'}: {_say(e)}" for e in err.errors()]
        raise SpecError(
            "invalid options", got="\n".join(problems), wanted=f"options of {', '.join(kind.model_fields)}"
        ) from err


def validate_allowed(runtime: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raise `SpecError` for settings that an engine may not have.

    What is allowed is listed: an engine's manifest may come from a stranger, and runtimes have settings that read or
    write any file.
    """
    refused = sorted(set(names) - set(allowed))
    if refused:
        raise SpecError(
            f"an engine may not have these options of {runtime}",
            got=", ".join(refused),
            wanted=f"any of {', '.join(sorted(allowed))}",
        )


def _say(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such option"
    return f"{error['msg']} (got {error['input']!r})"


def describe_options(kind: type[Options]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every option."""
    fields = kind.model_fields.items()
    return [(name, "" if f.default is None else str(f.default).lower(), f.description or "") for name, f in fields]
