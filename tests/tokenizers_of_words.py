"""A tokenizer for tiny models: one token for each word `w0`, `w1`, ..., and a beginning-of-text token."""

import shutil
from pathlib import Path

from models import PAD, VOCAB
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = "{% for m in messages %}<s> {{ m.content }}{% endfor %} w9"


def save_tokenizer(folder: Path, *, chat: bool = False) -> None:
    """Write the files of a tokenizer into a checkpoint."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)


def speaking(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with a tokenizer and a chat template, but no end of text, which small models soon choose."""
    shutil.copytree(bundle, folder)
    save_tokenizer(folder, chat=True)
    GenerationConfig(pad_token_id=PAD).save_pretrained(folder)
    return folder
