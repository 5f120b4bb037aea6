"""Their losses under their names."""

import math

import pytest
import torch

from fastdiff.compat.guided_diffusion import losses


def test_normal_kl_follows_its_formula():
    a, b = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    kl = losses.normal_kl(a, 0.3, b, -0.2)
    expected = 0.5 * (-1 - 0.2 - 0.3 + math.exp(0.5) + (a - b) ** 2 * math.exp(0.2))
    torch.testing.assert_close(kl, expected)
    with pytest.raises(ValueError, match="at least one argument"):
        losses.normal_kl(0.0, 0.0, 0.0, 0.0)
