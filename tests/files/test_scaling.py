"""How stored values map to the model's [-1, 1], and back."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.files.images import to_uint8
from fastdiff.files.scaling import DataScaling, check_type


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256, 257, 65536])
def test_scaling_is_correctly_rounded_and_round_trips(levels: int) -> None:
    scaling = DataScaling(levels)
    values = torch.arange(levels)
    x = scaling.to_model(values)
    exact = 2 * np.arange(levels, dtype=np.float64) / (levels - 1) - 1
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), exact.astype(np.float32))
    back = scaling.to_values(x)
    assert back.dtype == (torch.uint8 if levels <= 256 else torch.int64)
    assert torch.equal(back.to(torch.int64), values)


@settings(deadline=None, max_examples=60)
@given(levels=st.integers(2, 65536), seed=st.integers(0, 2**32 - 1))
def test_scaling_round_trips_any_levels(levels: int, seed: int) -> None:
    scaling = DataScaling(levels)
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (3, 5)))
    x = scaling.to_model(values)
    assert float(x.abs().max()) <= 1
    assert torch.equal(scaling.to_values(x).to(torch.int64), values)
    # Antisymmetric: counting from the top changes the sign and nothing else.
    assert torch.equal(scaling.to_model(levels - 1 - values), -x)


@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(allow_nan=False, width=32),
    levels=st.integers(2, 65536),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_scaling_to_values_takes_the_nearest_and_clamps(x: float, levels: int, dtype: torch.dtype) -> None:
    value = int(DataScaling(levels).to_values(torch.tensor([x], dtype=dtype)))
    ideal = min(max((x + 1) / 2, 0.0), 1.0) * (levels - 1)
    # Half a level, and float32's rounding of x + 1 (2^-24 of up to 2) seen through levels / 2.
    assert abs(value - ideal) <= 0.5 + levels * 2**-23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scaling_to_uint8_rounds_and_clamps_any_float(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -2, -1, -0.5, 0.5, 1, 3, torch.inf], dtype=dtype)
    out = to_uint8(x)
    assert out.dtype == torch.uint8
    assert out.tolist() == [0, 0, 0, 64, 191, 255, 255, 255]


def test_scaling_to_uint8_is_the_inverse_of_to_model() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(DataScaling(256).to_model(values)), values)


def test_scaling_nan_has_no_value() -> None:
    x = torch.tensor([0.0, torch.nan, torch.nan])
    with pytest.raises(ValueError, match="2 NaN among 3"):
        to_uint8(x)
    with pytest.raises(ValueError, match="2 NaN"):
        DataScaling(17).to_values(x)


def test_scaling_continuous_scaling_passes_floats_through() -> None:
    scaling = DataScaling(None)
    x = torch.tensor([-1.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.equal(scaling.to_model(x), x.to(torch.float32))
    with pytest.raises(ValueError, match="continuous"):
        scaling.to_values(x)
    with pytest.raises(TypeError, match="uint8"):
        scaling.to_model(torch.zeros(2, dtype=torch.uint8))


@pytest.mark.parametrize("values", [[-1, 3], [0, 17], [200, 0]], ids=str)
def test_scaling_refuses_values_out_of_range(values: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape("0..16")):
        DataScaling(17).to_model(torch.tensor(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_scaling_refuses_values_that_are_not_integers(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="integers"):
        DataScaling(256).to_model(torch.zeros(3, dtype=dtype))


def test_scaling_to_values_refuses_integers() -> None:
    with pytest.raises(TypeError, match="float"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("levels", [256, 17])
def test_scaling_takes_empty_tensors(levels: int) -> None:
    assert DataScaling(levels).to_model(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 1, 8, 8)
    assert DataScaling(levels).to_values(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("levels", [None, 2, 17, 256])
def test_scaling_survives_json(levels: int | None) -> None:
    scaling = DataScaling(levels)
    assert DataScaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


def test_scaling_from_dict_names_the_nearest_key() -> None:
    with pytest.raises(ValueError, match=r"'levls'.*did you mean 'levels'"):
        DataScaling.from_dict({"levls": 256})
    with pytest.raises(ValueError, match="needs the keys"):
        DataScaling.from_dict({})


@pytest.mark.parametrize(
    ("levels", "error"), [(1, ValueError), (0, ValueError), (65537, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_scaling_refuses_bad_levels(levels: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="levels"):
        DataScaling(levels)  # type: ignore[arg-type]


def test_scaling_takes_16_bits_as_stored() -> None:
    values = torch.from_numpy(np.array([0, 1, 32768, 65535], dtype=np.uint16))
    exact = 2 * np.array([0, 1, 32768, 65535]) / 65535 - 1
    assert np.array_equal(DataScaling(65536).to_model(values).numpy(), exact.astype(np.float32))
    with pytest.raises(ValueError, match=r"0\.\.99"):
        DataScaling(100).to_model(values)


@pytest.mark.parametrize(
    ("dtype", "levels"), [(torch.uint8, 257), (torch.uint8, None), (torch.uint16, None), (torch.float32, 256)], ids=str
)
def test_scaling_says_which_levels_a_type_has(dtype: torch.dtype, levels: int | None) -> None:
    with pytest.raises(ValueError, match="levels"):
        check_type(dtype, levels)
    check_type(torch.uint16, 65536)
