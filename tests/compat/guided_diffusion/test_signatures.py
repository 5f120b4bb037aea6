"""Functions that take their parameters from elsewhere are called, and refuse, as any function is."""

import inspect

import pytest

from fastdiff.compat.guided_diffusion._signatures import parameter, with_flags, with_parameters, with_parameters_of

FLAGS = {"size": 8, "name": "", "rate": 0.5}


@with_flags(("name", "size"), FLAGS)
def flagged(**flags):
    """Takes flags."""
    return flags


def plain(a: int, b: str = "x") -> None:
    """Has parameters."""


@with_parameters_of(plain)
def like_plain(**arguments) -> int:
    return arguments


@with_parameters([*inspect.signature(plain).parameters.values(), parameter("rate", 0.5, 0.1)])
def longer(**arguments):
    return arguments


@pytest.mark.parametrize("given", [(("n", 3), {}), (("n",), {"size": 3}), ((), {"size": 3, "name": "n"})], ids=str)
def test_with_flags_takes_positions_and_keywords(given):
    args, kwargs = given
    assert flagged(*args, **kwargs) == {"name": "n", "size": 3}


def test_signatures_are_shown_with_types_and_defaults():
    assert str(inspect.signature(flagged)) == "(name: 'str', size: 'int')"
    assert inspect.signature(like_plain).replace(return_annotation=None) == inspect.signature(plain)
    assert str(inspect.signature(longer)) == "(a: int, b: str = 'x', rate: 'float' = 0.1)"
    assert flagged.__doc__ == "Takes flags."
    assert like_plain(1) == {"a": 1, "b": "x"}
    assert longer(1, rate=2.0) == {"a": 1, "b": "x", "rate": 2.0}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"nme": "n"}, r"^flagged\(\) got an unexpected keyword argument 'nme'$"),
        ({"size": 3}, r"^flagged\(\) missing 1 required positional argument: 'name'$"),
        ({}, r"^flagged\(\) missing 2 required positional arguments: 'name', 'size'$"),
    ],
    ids=["unknown", "one missing", "all missing"],
)
def test_with_flags_refuses_what_a_function_refuses(kwargs, match):
    with pytest.raises(TypeError, match=match):
        flagged(**kwargs)
