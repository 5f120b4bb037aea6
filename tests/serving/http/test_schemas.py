"""Tests of fastdiff.serving.http.schemas: what a body may hold, and the sentence for what it may not."""

import re

import pytest

from fastdiff.serving.http.schemas import _EXPECTED, ImagesRequest, parsed


def test_an_empty_object_has_the_defaults():
    asked = parsed(b"{}")
    assert (asked.num, asked.sampler, asked.steps, asked.seed, asked.previews) == (1, "ddim", None, 0, 0)


def test_numbers_of_64_bits_are_kept():
    assert parsed(b'{"seed": 18446744073709551615}').seed == 2**64 - 1


def test_every_field_has_words_for_what_it_must_be():
    assert set(_EXPECTED) == set(ImagesRequest.model_fields)


@pytest.mark.parametrize("field", ImagesRequest.model_fields)
def test_a_value_of_another_type_is_named_with_its_field(field):
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got \{{'a': \{{'b': 1\}}\}}|{field} must be .* at "):
        parsed(f'{{"{field}": {{"a": {{"b": 1}}}}}}'.encode())


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"labels": [1, 2.5]}', "labels must be a list of numbers or names of classes, one per image, got 2.5 at "),
        (b'{"steps": 3, "Steps": 4}', "unknown field 'Steps': did you mean 'steps'? known: "),
        (b'{"guidance": 1e999}', "guidance must be a finite number, got inf"),
        (b'{"sample_ids": [' + b"0," * 2**16 + b"0]}", "sample_ids must be a list of whole numbers, one per image"),
        (b"3", "the body must be a JSON object, got 3"),
        (b"{", "the body is no JSON: EOF while parsing"),
    ],
    ids=["entry", "field", "infinite", "long", "number", "half"],
)  # fmt: skip
def test_faults_are_sentences(body, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        parsed(body)
