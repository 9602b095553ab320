"""Data of every kind is read as it is, and bad data is refused before a model is loaded."""

import json
from pathlib import Path

import datasets
import pytest
from corpora import checkpoint_of, save_lines
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from exported import CLASSES, TAGS, Recipe

from funnel_export import DataError, DataSpec, SpecError, evaluate
from funnel_export.quality.documents import Document, read_documents
from funnel_export.spec.choices import Task

TEXTS = ["w5 w6", "w7, and é\nw8"]
LABELS = [1, 0]
GENERATION, CLASSIFICATION, TAGGING = Task.TEXT_GENERATION, Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION


def read(*places: Path | str, task: Task = GENERATION, **options: str) -> list[Document]:
    return list(read_documents(DataSpec(places=tuple(map(str, places)), **options), task))


def texts(*places: Path | str, **options: str) -> list[str | list[str]]:
    return [document.text for document in read(*places, **options)]


def rows() -> list[dict[str, object]]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def dataset() -> Dataset:
    return Dataset.from_list(rows())


def save_json(folder: Path) -> Path:
    (folder / "data.json").write_text(json.dumps(rows()))
    return folder / "data.json"


def save_json_lines(folder: Path) -> Path:
    return save_lines(folder / "data.jsonl", rows())


def save_csv(folder: Path) -> Path:
    dataset().to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def save_parquet(folder: Path) -> Path:
    dataset().to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def save_to_disk(folder: Path) -> Path:
    dataset().save_to_disk(folder / "saved")
    return folder / "saved"


def save_splits(folder: Path) -> Path:
    other = Dataset.from_list([{"text": "w9", "label": 0}])
    DatasetDict({"train": other, "test": dataset()}).save_to_disk(folder / "splits")
    return folder / "splits"


def save_folder(folder: Path) -> Path:
    (folder / "many" / "inner").mkdir(parents=True)
    for name, row in zip(("a[1].jsonl", "inner/b.jsonl"), rows(), strict=True):
        save_lines(folder / "many" / name, [row])
    (folder / "many" / ".hidden").write_text("not data")
    return folder / "many"


@pytest.mark.parametrize(
    "save", [save_json, save_json_lines, save_csv, save_parquet, save_to_disk, save_splits, save_folder]
)
def test_every_kind_of_data(save, tmp_path: Path) -> None:
    place = save(tmp_path)
    assert texts(place) == TEXTS
    documents = read(place, task=CLASSIFICATION)
    assert [document.text for document in documents] == TEXTS
    assert [document.labels for document in documents] == [[1], [0]]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    (tmp_path / "a.txt").write_text("three é")
    assert texts(tmp_path) == ["three é", "one\r\ntwo\n"]
    assert texts(tmp_path / "b", tmp_path / "a.txt") == ["one\r\ntwo\n", "three é"]


def test_columns_and_splits_by_name(tmp_path: Path) -> None:
    place = save_lines(tmp_path / "data.jsonl", [{"body": "w5", "kind": "spam"}])
    (document,) = read(place, task=CLASSIFICATION, text_column="body", label_column="kind")
    assert (document.text, document.labels) == ("w5", ["spam"])
    assert texts(save_splits(tmp_path), split="train") == ["w9"]


def test_names_of_labels_in_the_data(tmp_path: Path) -> None:
    names = ClassLabel(names=["O", "B-X"])
    features = Features({"tokens": List(Value("string")), "tags": List(names)})
    place = tmp_path / "tags.parquet"
    Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 0]]}, features=features).to_parquet(place)
    (document,) = read(place, task=TAGGING)
    assert document == Document(f"{place}, row 1", ["a", "b"], [1, 0], ["O", "B-X"])


def test_reading_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, and the settings of the library as they were."""
    place, cache = save_csv(tmp_path), tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    before = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    assert texts(place) == TEXTS
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before
    assert not cache.exists()


def write(name: str, content: bytes):
    def save(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return save


def save_two_formats(folder: Path) -> Path:
    save_csv(folder)
    save_json(folder)
    return folder


def save_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (write("empty.txt", b""), "the file is empty"),
        (write("empty.jsonl", b""), "the file is empty"),
        (write("empty.csv", b"text,label\n"), "no documents with tokens"),
        (write("blank.txt", b" \n "), "no documents with tokens"),
        (write("bad.txt", b"abc\xff"), "not UTF-8"),
        (write("bad.jsonl", '{"text": "é"}\n'.encode("latin-1")), "not UTF-8"),
        (write("bad.csv", "text\né,1\n".encode("latin-1")), "not UTF-8"),
        (write("zero.txt", b"abc\0def"), "not a text file"),
        (write("cut.jsonl", b'{"text": "abc"\n'), "cannot be read"),
        (write("bad.parquet", b"PAR1xxxx"), "cannot be read"),
        (write("other.jsonl", b'{"body": "abc", "label": 1}\n'), "no column 'text'\n.*row 1: 'body', 'label'"),
        (write("null.jsonl", b'{"text": "w5"}\n{"text": null}\n'), "row 2: None"),
        (write("number.jsonl", b'{"text": 5}\n'), "row 1: 5"),
        (save_two_formats, "several formats"),
        (save_empty_folder, "no files"),
        (lambda folder: folder / "nowhere.txt", "data not found"),
        (lambda folder: folder / "no" / "where", "data not found"),
        (lambda _: "x" * 300, "cannot be accessed"),
    ],
)
def test_bad_data_is_refused_before_a_model_is_loaded(
    save, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint_of(Recipe(), tmp_path / "model")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("funnel_export.verify.reference.load_checkpoint", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match=rf"(?s){message}"):
        evaluate(model, save(tmp_path / "data"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w5"}, "no column 'label'"),
        ({"text": "w5", "label": 3}, "row 1: 3\n.*0 to 2"),
        ({"text": "w5", "label": -1}, "row 1: -1"),
        ({"text": "w5", "label": "spam"}, "row 1: 'spam'\n.*LABEL_0, LABEL_1, LABEL_2"),
        ({"text": "w5", "label": 1.5}, "neither a number nor a name"),
        ({"text": "w5", "label": None}, "label is missing"),
    ],
)
def test_bad_labels(row: dict[str, object], message: str, tmp_path: Path) -> None:
    model = checkpoint_of(CLASSES, tmp_path / "model")
    with pytest.raises(DataError, match=rf"(?s){message}"):
        evaluate(model, save_lines(tmp_path / "data.jsonl", [row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["w5", "w6"], "tags": [0]}, "2 words, 1 labels"),
        ({"tokens": "w5 w6", "tags": [0, 1]}, "words are not a list"),
        ({"tokens": ["w5"], "tags": 0}, "labels are not a list"),
        ({"tokens": ["w5", ""], "tags": [0, 1]}, "a word has no tokens"),
        ({"tokens": ["w5", "w6"], "tags": [0, 7]}, "row 1: 7"),
        ({"text": ["w5"], "tags": [0]}, "no column 'tokens'"),
    ],
)
def test_bad_words(row: dict[str, object], message: str, tmp_path: Path) -> None:
    model = checkpoint_of(TAGS, tmp_path / "model")
    with pytest.raises(DataError, match=message):
        evaluate(model, save_lines(tmp_path / "data.jsonl", [row]))


def test_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split dev\n.*train, test"):
        read(save_splits(tmp_path), split="dev")
    DatasetDict({"train": dataset(), "dev": dataset()}).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match=r"no split test\n.*train, dev"):
        read(tmp_path / "other")
    with pytest.raises(SpecError, match="files have no splits"):
        read(save_csv(tmp_path), split="test")
    with pytest.raises(SpecError, match="no data was given"):
        DataSpec(places=())


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"not loaded from the Hub\n.*nobody/nothing"):
        read("nobody/nothing")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SpecError, match=r"(?s)package datasets.*pip install 'datasets>="):
        read(save_lines(tmp_path / "data.jsonl", rows()))
    (tmp_path / "a.txt").write_text("texts need no package")
    assert texts(tmp_path / "a.txt") == ["texts need no package"]
