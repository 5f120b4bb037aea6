"""Options read from text: key=value pairs and YAML."""

import pytest

from fastdiff.cli.options import key_values, read_yaml


def test_key_values_are_typed():
    found = key_values(
        ["eta=0.5", "order=3", "clip=none", "spacing=quad", "flag=true", "t=[3, 2]", "tiny=1e-4", "a-b=1"]
    )
    assert found == {
        "eta": 0.5,
        "order": 3,
        "clip": None,
        "spacing": "quad",
        "flag": True,
        "t": [3, 2],
        "tiny": 1e-4,
        "a_b": 1,
    }


def test_yaml_reads_exponents_as_numbers():
    assert read_yaml("[1e-4, 2.5E3, -1e5, 1.5e-3, 12, e4]", "here") == [1e-4, 2500.0, -1e5, 1.5e-3, 12, "e4"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [1, 2]\nb: *x", r"here: line 2: aliases \(\*x\) are not read"),
        ("[" * 3000, "here: nested too deeply"),
        ("2020-13-45", "here: month must be in 1..12"),
        ("!!python/object/apply:os.system ['true']", "here: could not determine a constructor"),
    ],
    ids=["alias", "nested", "no date", "code"],
)
def test_yaml_that_is_not_read_is_a_sentence(text, expected):
    with pytest.raises(ValueError, match=expected):
        read_yaml(text, "here")
