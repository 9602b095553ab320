"""What all JSON files that the project writes have in common: frozen records, digests, a version."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SchemaVersion = Literal[2]
SCHEMA: SchemaVersion = 2
"""Version of manifests and reports; files of another one are refused."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, in hexadecimal digits."""
Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""What a graph of a bundle does."""
FileSize = Annotated[int, Field(ge=0, lt=1 << 63)]
Funnel = dict[str, int | str | bool]
"""A funnel as JSON, see `FunnelSpec.to_dict`."""


class Record(BaseModel):
    """A part of such a file; it has no other keys than these."""

    model_config = ConfigDict(frozen=True, extra="forbid")
