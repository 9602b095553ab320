"""The settings of a tokenizer, as transformers 4 and 5 both read them."""

import re

SETTINGS = "tokenizer_config.json"

# A quotation mark within a JSON string is escaped, so these find keys and values only.
_CLASS = re.compile(rb'("tokenizer_class"\s*:\s*)"TokenizersBackend"')
_TOKENS = re.compile(rb'"extra_special_tokens"(\s*:\s*\[)')


def readable_by_all(settings: bytes) -> bytes:
    """Name what only transformers 5 has by the name that 4 knows too; every other byte stays.

    Version 5 writes `TokenizersBackend` for a tokenizer without a class of its own, and special tokens as a list
    `extra_special_tokens`. Version 4 fails on both. Both versions read `PreTrainedTokenizerFast` and
    `additional_special_tokens`, as the same tokenizer.

    Args:
        settings: the content of `tokenizer_config.json`.
    """
    settings = _CLASS.sub(rb'\1"PreTrainedTokenizerFast"', settings)
    if b'"additional_special_tokens"' in settings:  # a key cannot be there twice
        return settings
    return _TOKENS.sub(rb'"additional_special_tokens"\1', settings)
