"""Finds and opens data: text files, JSON, CSV, Parquet, what the library `datasets` saved, data sets on the Hub."""

import contextlib
import glob
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funnel_export.errors import DataError, FunnelExportError, SpecError
from funnel_export.quality.packages import load_package
from funnel_export.spec.data import DataSpec
from funnel_export.system.files import open_regular, permission_hint

TEXT = "text"
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Formats of tables by the suffix of a file; other files are texts, one document each."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
WANTED = "text files, .jsonl, .json, .csv, .parquet, a folder of these, or what `datasets` saved with save_to_disk"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A file, or a split of a data set."""

    name: str
    source: Any
    """The path of the file, or the data set."""

    @property
    def is_text(self) -> bool:
        """Whether it is a text file, which is one document."""
        return isinstance(self.source, Path) and self.source.suffix.lower() not in FORMATS


@dataclass(frozen=True, slots=True)
class Opened:
    """The rows of a table, and what is known about its columns."""

    rows: Iterable[Row]
    features: Mapping[str, Any]
    """Types of the columns in the library `datasets`; empty if they are not known."""

    def label_names(self, column: str) -> Sequence[str]:
        """Names of the labels 0, 1, ... of a column, or of its lists; empty if they have none."""
        feature = self.features.get(column)
        return getattr(getattr(feature, "feature", feature), "names", None) or ()


def find_tables(data: DataSpec) -> list[Table]:
    """The tables at all places, in order.

    Raises:
        DataError: if a place is missing, is a folder without files or with several formats, or if there is no such
            split.
        SpecError: for a split of plain files, or if the package `datasets` is needed and not installed.
    """
    return [table for place in data.places for table in _tables(place, data)]


def check_places(data: DataSpec) -> None:
    """Raise `DataError` for a place that is missing and cannot be the id of a data set; nothing is read."""
    for place in data.places:
        if not _is_here(place):
            _check_id(place)


@contextlib.contextmanager
def open_table(table: Table) -> Iterator[Opened]:
    """Open a table; its rows are read while the block lasts, in which errors of other libraries become `DataError`."""
    with _explained(table.name):
        if not isinstance(table.source, Path):
            yield Opened(table.source, table.source.features)
            return
        if table.source.stat().st_size == 0:
            raise DataError("the file is empty", got=table.name, wanted="documents")
        if table.is_text:
            yield Opened([{TEXT: _read_text(table.source)}], {})
            return
        with _library() as datasets, tempfile.TemporaryDirectory() as cache:
            read = getattr(datasets.IterableDataset, f"from_{FORMATS[table.source.suffix.lower()]}")
            rows = read(glob.escape(str(table.source.absolute())), cache_dir=cache)
            yield Opened(rows, rows.features or {})


def _tables(place: str, data: DataSpec) -> list[Table]:
    path = Path(place)
    if not _is_here(place):
        return [_from_hub(place, data)]
    folder = path.is_dir()
    if folder and any((path / name).exists() for name in (SAVED, SAVED_SPLITS)):
        with _explained(place), _library() as datasets:
            return [_split_of(place, datasets.load_from_disk(place), data)]
    if data.split or data.subset:
        raise SpecError(
            "files have no splits and no subsets",
            got=f"{place}, with split {data.split}, subset {data.subset}",
            wanted="a data set, or files without these options",
        )
    files = _files(path) if folder else [path]
    formats = {FORMATS.get(file.suffix.lower(), TEXT): file for file in files}
    if len(formats) != 1:
        raise DataError(
            "the folder has files of several formats" if formats else "the folder has no files",
            got=", ".join(f"{file} ({name})" for name, file in formats.items()) or place,
            wanted=WANTED,
            hint="--data with the files themselves" if formats else None,
        )
    return [Table(str(file), file) for file in files]


def _files(folder: Path) -> list[Path]:
    """The files in a folder and the folders inside it, without hidden ones."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _is_here(place: str) -> bool:
    try:
        return Path(place).exists()
    except OSError as err:
        raise DataError("the data cannot be accessed", got=err, wanted=WANTED, hint=permission_hint(err)) from err


def _check_id(place: str) -> None:
    if not HUB_ID.fullmatch(place) or Path(place).suffix in (*FORMATS, ".txt"):
        raise DataError("data not found", got=place, wanted=WANTED)


def _from_hub(place: str, data: DataSpec) -> Table:
    _check_id(place)
    with _explained(place, "data not found on this machine, and not loaded from the Hub"), _library() as datasets:
        return _split_of(place, datasets.load_dataset(place, data.subset, split=data.split), data)


def _split_of(name: str, found: Any, data: DataSpec) -> Table:
    """The requested split, or a data set that has none."""
    if not isinstance(found, dict):  # `DatasetDict` is one
        return Table(name, found)
    splits = list(found)
    chosen = data.split or (splits[0] if len(splits) == 1 else "test")
    if chosen not in splits:
        raise DataError(
            f"the data set has no split {chosen}",
            got=f"{name}: {', '.join(splits)}",
            wanted="one of its splits",
            hint=f"--split {splits[0]}" if splits else None,
        )
    return Table(f"{name}, split {chosen}", found[chosen])


def _read_text(file: Path) -> str:
    with open_regular(file) as stream:
        text = stream.read().decode("utf-8-sig")
    if "\0" in text:
        raise DataError("this is not a text file", got=f"{file}: a zero byte", wanted=WANTED)
    return text


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """The package `datasets`, without its logs and progress bars while the block lasts."""
    datasets = load_package("datasets", "data of this kind")
    level, shown = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _explained(name: str, what: str = "the data cannot be read") -> Iterator[None]:
    """Turn errors of other libraries into `DataError` with the name of the data."""
    try:
        yield
    except FunnelExportError:
        raise
    except UnicodeDecodeError as err:
        raise DataError(
            "the data is not UTF-8",
            got=f"{name}: {err.reason}, 0x{err.object[err.start]:02x}",
            wanted="UTF-8",
            hint=f"iconv -f latin1 -t utf-8 {name} > NEW_FILE, if it is Latin-1",
        ) from err
    except Exception as err:  # whatever a reader of files or the Hub raises
        first = str(err).strip().partition("\n")[0]
        raise DataError(what, got=f"{name}: {type(err).__name__}: {first}", wanted=WANTED) from err
