"""The enums of a process, and the schedules by name against their formulas."""

import math

import numpy as np
import pytest

from fastdiff.compat.guided_diffusion import enums, gaussian_diffusion
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE


@pytest.mark.parametrize("num", [100, 1000, 4000])
def test_linear_betas_are_hos_scaled_to_the_number_of_steps(num):
    scale = 1000 / num
    expected = np.linspace(scale * 1e-4, scale * 0.02, num)
    np.testing.assert_allclose(enums.get_named_beta_schedule("linear", num), expected, rtol=FLOAT64)


def test_cosine_betas_follow_nichol_and_dhariwal():
    def abar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [min(1 - abar((i + 1) / 50) / abar(i / 50), 0.999) for i in range(50)]
    np.testing.assert_allclose(enums.get_named_beta_schedule("cosine", 50), expected, rtol=FLOAT64_DIFFERENCE)
    np.testing.assert_allclose(enums.betas_for_alpha_bar(50, abar), expected, rtol=FLOAT64_DIFFERENCE)
    capped = enums.betas_for_alpha_bar(50, abar, max_beta=0.5)
    np.testing.assert_allclose(capped, np.minimum(expected, 0.5), rtol=FLOAT64_DIFFERENCE)


def test_betas_are_the_callers_to_change():
    betas = enums.get_named_beta_schedule("linear", 100)
    betas[0] = 0.5
    assert enums.get_named_beta_schedule("linear", 100)[0] != 0.5
    with pytest.raises(NotImplementedError, match="unknown beta schedule: sigmoid"):
        enums.get_named_beta_schedule("sigmoid", 100)


def test_enums_have_their_members_and_stand_where_their_code_looks_for_them():
    members = {
        "ModelMeanType": {"PREVIOUS_X", "START_X", "EPSILON"},
        "ModelVarType": {"LEARNED", "FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"},
        "LossType": {"MSE", "RESCALED_MSE", "KL", "RESCALED_KL"},
    }
    for name, expected in members.items():
        assert getattr(gaussian_diffusion, name) is getattr(enums, name)
        assert set(getattr(enums, name).__members__) == expected
    assert [kind.is_vb() for kind in enums.LossType] == [False, False, True, True]
