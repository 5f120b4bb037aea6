"""Options of a wrong type are a sentence, and arguments are spelt as the caller types them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fastdiff import samplers
from fastdiff.nets.recipes import build_diffusion
from fastdiff.process.arguments import advised, check_options, spelling, spelling_also, spelt
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule

PROCESS = Diffusion(NoiseSchedule.cosine(20))


def _takes(a: float = 0.0, b: str | None = None, c: Sequence[int] | None = None, d: np.ndarray | None = None) -> None:
    pass


@pytest.mark.parametrize(
    "options", [{"a": 1}, {"a": np.float32(2)}, {"b": None}, {"b": "x"}, {"c": [1, 2]}, {"c": (1,)}, {"d": "anything"}]
)
def test_options_that_fit_pass(options: dict[str, object]) -> None:
    check_options(options, _takes, "it")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"a": "x"}, "a of it must be a number, got 'x'"),
        ({"a": None}, "a of it must be a number, got None"),
        ({"a": [1.0]}, "a of it must be a number"),
        ({"a": True}, "a of it must be a number, got True"),
        ({"b": 3}, "b of it must be a name or none, got 3"),
        ({"c": "12"}, "c of it must be a list of numbers or none, got '12'"),
        ({"c": [1, "2"]}, "c of it must be a list of numbers or none"),
    ],
    ids=str,
)
def test_options_that_do_not_are_named(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_options(options, _takes, "it")


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_refuses_text_for_a_number(name: str) -> None:
    for option, default in samplers.registry.registered(name).parameters.items():
        if isinstance(default.default, int | float) and not isinstance(default.default, bool):
            with pytest.raises(ValueError, match=f"{option} of sampler '{name}' must be"):
                samplers.build(name, PROCESS, 4, **{option: "x"})


def test_options_of_schedules_are_checked() -> None:
    with pytest.raises(ValueError, match="offset of schedule 'cosine' must be a number, got 'a'"):
        build_diffusion({"schedule": {"name": "cosine", "offset": "a"}})


def test_arguments_are_spelt_as_the_command_has_them() -> None:
    with spelling({"size": "--size", "override": "--override", "clip": "--set train.clip"}, ["size"]):
        assert (spelt("size"), spelt("clip")) == ("--size", "clip")
        assert advised("size", 8) == "--size 8"
        assert advised("override", True) == "--override"
        assert advised("clip", True) == "--set train.clip=True"
        assert advised("crop", "random") == "crop='random'"
        with spelling_also({"crop": "--set data.crop", "size": "--set data.size"}):
            assert advised("crop", "random") == "--set data.crop=random"
            # An option of its own comes first.
            assert advised("size", 8) == "--size 8"
    with spelling_also({"crop": "--set data.crop"}):
        assert advised("crop", "random") == "crop='random'"
