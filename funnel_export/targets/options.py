"""Build options from `--option key=value`, validated before the build."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from funnel_export.errors import SpecError

OptionsT = TypeVar("OptionsT", bound="Options")

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Largest number of threads for an engine: more are a mistake, or an attack by an untrusted manifest."""


class Options(BaseModel):
    """Base class of every target's options; the command line shows the fields' descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def recorded(self) -> dict[str, str | int | float | bool]:
        """The options that differ from the defaults, as recorded in an engine's manifest."""
        return self.model_dump(mode="json", exclude_defaults=True)


def parse_options(kind: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Parse options from strings or values.

    Raises:
        SpecError: if options are unknown or have invalid values; the message lists all of them.
    """
    strange = [
        f"{name}: {value!r}" for name, value in values.items() if not isinstance(value, str | int | float | bool)
    ]
    if strange and kind.model_config.get("extra") == "allow":
        raise SpecError("invalid options", got="\n".join(strange), wanted="strings, numbers or booleans as values")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as err:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'together'}: {_say(e)}" for e in err.errors()]
        raise SpecError(
            "invalid options", got="\n".join(problems), wanted=f"options of {', '.join(kind.model_fields)}"
        ) from err


def options_of_engine(kind: type[OptionsT], recorded: Mapping[str, Any]) -> OptionsT:
    """The options in an engine's manifest, for a session, a rebuild or a dense counterpart, without names of files.

    A manifest may be untrusted: a build would read or overwrite the files that it names.

    Raises:
        SpecError: see `parse_options`.
    """
    files = {
        name for name, field in kind.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))
    }
    return parse_options(kind, {name: value for name, value in recorded.items() if name not in files})


def validate_allowed(runtime: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raise `SpecError` for runtime settings that are not in the list of allowed ones.

    An engine's manifest may be untrusted, and runtimes have settings that read or write any file.
    """
    refused = sorted(set(names) - set(allowed))
    if refused:
        raise SpecError(
            f"these options of {runtime} are not allowed",
            got=", ".join(refused),
            wanted=f"any of {', '.join(sorted(allowed))}",
        )


def _say(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown option"
    return f"{error['msg']} (got {error['input']!r})"


def describe_options(kind: type[Options]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every option."""
    fields = kind.model_fields.items()
    return [(name, "" if f.default is None else str(f.default).lower(), f.description or "") for name, f in fields]
