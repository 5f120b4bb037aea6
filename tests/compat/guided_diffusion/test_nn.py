"""Their modules' functions under their names."""

import numpy as np
import pytest
import torch

from fastdiff.compat.guided_diffusion import nn
from support.tolerances import FLOAT32_SUM


def test_nn_follows_its_formulas():
    waves = nn.timestep_embedding(torch.tensor([0.0, 10.0]), 6)
    frequencies = np.exp(-np.log(1e4) * np.arange(3) / 3)
    np.testing.assert_allclose(waves[1], [*np.cos(10 * frequencies), *np.sin(10 * frequencies)], atol=FLOAT32_SUM)
    slow = nn.timestep_embedding(torch.tensor([0.0, 10.0]), 5, max_period=100)
    frequencies = np.exp(-np.log(100) * np.arange(2) / 2)
    np.testing.assert_allclose(slow[1], [*np.cos(10 * frequencies), *np.sin(10 * frequencies), 0], atol=FLOAT32_SUM)
    target = torch.ones(3)
    nn.update_ema([target], [torch.zeros(3)], rate=0.9)
    assert target.tolist() == pytest.approx([0.9] * 3)
