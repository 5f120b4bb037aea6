"""Options read from text: key=value pairs and YAML."""

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
