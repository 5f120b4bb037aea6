"""The factories and flags: they build what they name."""

import argparse
import inspect

import pytest

from fastdiff.compat.guided_diffusion import script_util


def test_defaults_build_what_they_name():
    assert set(inspect.signature(script_util.create_model_and_diffusion).parameters) == set(
        script_util.model_and_diffusion_defaults()
    )
    assert set(inspect.signature(script_util.sr_create_model_and_diffusion).parameters) == set(
        script_util.sr_model_and_diffusion_defaults()
    )
    assert set(inspect.signature(script_util.create_classifier_and_diffusion).parameters) == set(
        script_util.classifier_and_diffusion_defaults()
    )


def test_flags_are_typed_by_their_defaults():
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, {"a": 1, "b": 0.5, "c": False, "d": None, "e": "x"})
    args = parser.parse_args(["--a", "2", "--b", "3", "--c", "yes", "--d", "7"])
    assert script_util.args_to_dict(args, "abcde") == {"a": 2, "b": 3.0, "c": True, "d": "7", "e": "x"}
    assert [script_util.str2bool(v) for v in ("T", "1", True, "n", "false", False)] == [True] * 3 + [False] * 3
    with pytest.raises(argparse.ArgumentTypeError, match="boolean value expected"):
        script_util.str2bool("maybe")
    assert script_util.NUM_CLASSES == 1000
