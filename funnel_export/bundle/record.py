"""Common parts of all JSON files that the project writes: base record, digests, schema version."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SchemaVersion = Literal[2]
SCHEMA: SchemaVersion = 2
"""Schema version of manifests and reports; files of other versions are refused."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, in hexadecimal digits."""
Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""Name of a graph's part in the bundle, for example `model`."""
FileSize = Annotated[int, Field(ge=0, lt=1 << 63)]
Funnel = dict[str, int | str | bool]
"""A funnel as JSON, see `FunnelSpec.to_dict`."""


class Record(BaseModel):
    """Base of these files' schemas: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
