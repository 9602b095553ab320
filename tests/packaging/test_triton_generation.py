"""How Triton's inputs become a request, and tokens become the outputs of responses; without a server."""

from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from funnel_export import Request, Sampling, SpecError
from funnel_export.packaging.triton_config import INPUTS, OUTPUTS
from funnel_export.packaging.triton_generation import Reply, RequestReader, wants_stream
from funnel_export.runtime.batch import Token

NUMPY = {"TYPE_STRING": object, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}
KINDS = NUMPY | {"TYPE_BOOL": np.bool_, "TYPE_UINT32": np.uint32}


class Words:
    """As much of a tokenizer as the reader asks for: the length of each word."""

    def __call__(self, text: str) -> Any:
        return type("Encoded", (), {"input_ids": [len(word) for word in text.split()]})


def reader(limit: int = 400, **defaults: Any) -> RequestReader:
    return RequestReader(
        tokenizer=Words(), limit=limit, end_tokens=frozenset({1}), defaults=GenerationConfig(**defaults)
    )


def arrays(**values: Any) -> dict[str, Any]:
    """Values as the back end gets them from Triton."""
    found = {}
    for name, value in values.items():
        kind, size = INPUTS[name]
        listed = value if isinstance(value, list) else [value]
        listed = [each.encode() if isinstance(each, str) else each for each in listed]
        found[name] = np.array(listed, KINDS[kind])
        assert size in (-1, len(listed))
    return found


def read(values: dict[str, Any], **defaults: Any) -> Request:
    return reader(**defaults).read(arrays(**{"text_input": "ab cde"} | values), {})


def test_everything_that_may_be_given() -> None:
    values = {"max_tokens": 7, "temperature": 0.7, "top_k": 4, "top_p": 0.9, "seed": -5, "stop": ["é", "b"]}
    assert read(values) == Request(
        prompt=(2, 3),
        max_new_tokens=7,
        sampling=Sampling(temperature=0.7, top_k=4, top_p=0.9, seed=-5),
        stop_tokens=frozenset({1}),
        stop_strings=("é", "b"),
    )
    assert reader().read(arrays(input_ids=[4, 5]), {}).prompt == (4, 5)


SAMPLES = {"do_sample": True, "temperature": 0.5, "top_k": 64, "top_p": 0.95}


@pytest.mark.parametrize(
    ("values", "defaults", "wanted"),
    [
        ({}, {}, Sampling()),
        ({"seed": 3}, {}, Sampling(seed=3)),
        ({"top_k": 3}, {}, Sampling(temperature=1.0, top_k=3)),
        ({"temperature": 2}, {"temperature": 0.5, "top_k": 64}, Sampling(temperature=2.0)),
        ({}, SAMPLES, Sampling(temperature=0.5, top_k=64, top_p=0.95)),
        ({}, {"do_sample": True}, Sampling(temperature=1.0)),
        ({"temperature": 0}, SAMPLES, Sampling(temperature=0.0, top_k=64, top_p=0.95)),
        ({"top_k": 0, "seed": 1}, SAMPLES, Sampling(temperature=0.5, top_k=0, top_p=0.95, seed=1)),
    ],
    ids=str,
)
def test_sampling_that_is_not_given_is_as_the_config_says(
    values: dict[str, Any], defaults: dict[str, Any], wanted: Sampling
) -> None:
    assert read(values, **defaults).sampling == wanted


def test_the_largest_number_of_tokens() -> None:
    assert read({}).max_new_tokens == 256
    assert read({}, max_new_tokens=30).max_new_tokens == 30
    assert read({}, limit=40).max_new_tokens == 38
    assert read({"max_tokens": 5}, max_new_tokens=30).max_new_tokens == 5
    assert read({"max_tokens": 500}, limit=40).max_new_tokens == 500, "the batch refuses it"


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, {}, "(?s)one prompt.*got: neither"),
        ({"text_input": "a", "input_ids": [1]}, {}, "(?s)one prompt.*got: text_input and input_ids"),
        ({"text_input": ""}, {}, "the prompt is empty"),
        ({"text_input": "a"}, {"max_token": 5, "n": 2}, "(?s)unknown options.*'max_token', 'n'"),
        ({"text_input": "a", "top_p": float("nan")}, {}, "invalid top_p"),
        ({"text_input": "a", "temperature": float("inf")}, {}, "invalid temperature"),
        ({"text_input": "a", "top_k": -1}, {}, "invalid top_k"),
    ],
    ids=str,
)
def test_requests_without_a_meaning(inputs: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        reader().read(arrays(**inputs), parameters)


@pytest.mark.parametrize("name", ["text_input", "stop"])
def test_bytes_that_are_no_text(name: str) -> None:
    inputs = arrays(text_input="a") | {name: np.array([b"\xff"], object)}
    with pytest.raises(SpecError, match=f"{name} is not valid UTF-8"):
        reader().read(inputs, {})


TOKENS = [Token(0, 5, "a ", None), Token(0, 6, "", None), Token(0, 7, "é ", None), Token(0, 8, "d", "stop")]


def replies(stream: bool, tokens: list[Token] = TOKENS) -> list[list[Any]]:
    request = Request(prompt=(1, 2, 3), max_new_tokens=9)
    reply = Reply(request, stream)
    found = [outputs for token in tokens if (outputs := reply.add(token)) is not None]
    for outputs in found:
        assert list(outputs) == list(OUTPUTS)
        for name, (kind, size) in OUTPUTS.items():
            assert outputs[name].dtype == KINDS[kind]
            assert size in (-1, *outputs[name].shape)
    return [[outputs[name].tolist() for name in OUTPUTS] for outputs in found]


def test_a_reply_in_one_response() -> None:
    assert replies(stream=False) == [[["a é d".encode()], [5, 6, 7, 8], [b"stop"], [3], [4]]]


def test_a_reply_in_parts() -> None:
    assert replies(stream=True) == [
        [[b"a "], [5], [b""], [3], [1]],
        [["é ".encode()], [6, 7], [b""], [3], [2]],
        [[b"d"], [8], [b"stop"], [3], [1]],
    ]
    silent = [Token(0, 5, "", None), Token(0, 1, "", "stop")]
    assert replies(stream=True, tokens=silent) == [[[b""], [5, 1], [b"stop"], [3], [2]]]


def test_a_stream_is_asked_for() -> None:
    assert wants_stream(arrays(stream=True))
    assert not wants_stream(arrays(stream=False))
    assert not wants_stream({})
