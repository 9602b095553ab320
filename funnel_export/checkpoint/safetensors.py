"""safetensors files: where each tensor lies, and what identifies a file, without loading a weight."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from funnel_export.errors import CheckpointError
from funnel_export.spec.choices import Dtype
from funnel_export.system.files import LARGEST_HEADER, open_regular, permission_hint

DTYPE_NAMES = {"F32": Dtype.FLOAT32, "F16": Dtype.FLOAT16, "BF16": Dtype.BFLOAT16}
DTYPE_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes of weights that can be exported, as safetensors names them, with their sizes in bytes."""
SAMPLE = 4096
"""Bytes that are read of each tensor."""
Size = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]


class HeaderEntry(BaseModel):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


_HEADER = TypeAdapter(Annotated[dict[str, HeaderEntry], Field(max_length=1 << 16)])


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one weight lies."""

    file: str
    """Name of the safetensors file."""
    dtype: str
    """As safetensors names it: F32, F16, BF16."""
    shape: tuple[int, ...]
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file: what identifies it without reading gigabytes."""

    file: str
    size: int
    header_sha256: str
    sample_sha256: str
    """Digest of the middle `SAMPLE` bytes of every tensor: two trainings of one model have the same header."""
    tensors: dict[str, StoredTensor]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header of a safetensors file, and a sample of its weights.

        Raises:
            CheckpointError: if it is not a whole safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with open_regular(path) as stream:
                with safe_open(path, framework="numpy"):  # the library validates the header: sizes, overlaps, gaps
                    pass
                length = int.from_bytes(stream.read(8), "little")
                header = stream.read(min(length, LARGEST_HEADER))
                size = os.fstat(stream.fileno()).st_size
                tensors = _tensors(path.name, 8 + length, header)
                sample = _sample(stream, tensors.values())
        except (OSError, SafetensorError, ValueError, RecursionError) as err:
            raise CheckpointError(
                "a weight file cannot be read",
                got=f"{path}: {_first(err)}",
                wanted="a whole safetensors file",
                hint=permission_hint(err) or "download or save the checkpoint again",
            ) from err
        return cls(path.name, size, hashlib.sha256(header).hexdigest(), sample, tensors)


def _tensors(file: str, start: int, header: bytes) -> dict[str, StoredTensor]:
    """What a header names, in a file whose weights begin at `start`."""
    return {
        name: StoredTensor(
            file=file,
            dtype=entry.dtype,
            shape=entry.shape,
            offset=start + entry.data_offsets[0],
            nbytes=entry.data_offsets[1] - entry.data_offsets[0],
        )
        for name, entry in _HEADER.validate_python(_without_metadata(header)).items()
    }


def _sample(stream: BinaryIO, tensors: Iterable[StoredTensor]) -> str:
    """See `WeightFile.sample_sha256`."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda each: each.offset):
        stream.seek(tensor.offset + max(0, tensor.nbytes - SAMPLE) // 2)
        digest.update(stream.read(min(tensor.nbytes, SAMPLE)))
    return digest.hexdigest()


def _without_metadata(header: bytes) -> dict[str, Any]:
    """A safetensors header's tensors; of several with one name no reader could say which is meant."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("its header names a tensor twice")
        return values

    values: dict[str, Any] = json.loads(header, object_pairs_hook=unique)
    values.pop("__metadata__", None)
    return values


def _first(err: Exception) -> str:
    """The first line that says something."""
    return str(err.errors()[0]["msg"]) if isinstance(err, ValidationError) else str(err)
