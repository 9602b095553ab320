"""safetensors files: location of each tensor and digests of each file, without loading weights."""

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
"""Supported dtypes of weights, with safetensors' names and their sizes in bytes."""
CODE_SIZES = {"I8": 1, "U8": 1}
"""Dtypes of the codes of quantized weights."""
SAMPLE = 4096
"""Number of bytes that are read of each tensor."""
Size = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]


class HeaderEntry(BaseModel):
    """The entry of one tensor in a safetensors header."""

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


_HEADER = TypeAdapter(Annotated[dict[str, HeaderEntry], Field(max_length=1 << 16)])


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Location of one weight in a safetensors file."""

    file: str
    """Name of the safetensors file."""
    dtype: str
    """safetensors' name of the dtype: F32, F16 or BF16; I8 or U8 for codes of quantized weights."""
    shape: tuple[int, ...]
    offset: int
    """Offset of the first byte from the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file, with digests that identify it without reading gigabytes."""

    file: str
    size: int
    header_sha256: str
    sample_sha256: str
    """Digest of the middle `SAMPLE` bytes of every tensor; it differs between trainings with the same header."""
    tensors: dict[str, StoredTensor]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header of a safetensors file and a sample of its weights.

        Raises:
            CheckpointError: if the file cannot be read, or is not a complete safetensors file.
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
                wanted="a complete safetensors file",
                hint=permission_hint(err) or "download or save the checkpoint again",
            ) from err
        return cls(path.name, size, hashlib.sha256(header).hexdigest(), sample, tensors)


def _tensors(file: str, start: int, header: bytes) -> dict[str, StoredTensor]:
    """The tensors of a header, in a file whose data starts at byte `start`."""
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
    """The digest `WeightFile.sample_sha256`."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda each: each.offset):
        stream.seek(tensor.offset + max(0, tensor.nbytes - SAMPLE) // 2)
        digest.update(stream.read(min(tensor.nbytes, SAMPLE)))
    return digest.hexdigest()


def _without_metadata(header: bytes) -> dict[str, Any]:
    """The tensors of a safetensors header; raises `ValueError` if a name occurs twice, which would be ambiguous."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("the header names a tensor twice")
        return values

    values: dict[str, Any] = json.loads(header, object_pairs_hook=unique)
    values.pop("__metadata__", None)
    return values


def _first(err: Exception) -> str:
    """The text of an error; of pydantic's, only the first fault."""
    return str(err.errors()[0]["msg"]) if isinstance(err, ValidationError) else str(err)
