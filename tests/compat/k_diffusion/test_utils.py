"""k-diffusion's `utils`."""

import pytest
import torch

from fastdiff.compat import k_diffusion as k


def test_append_dims_puts_dimensions_of_1_at_the_end():
    sigma = torch.tensor([2.0, 4.0])
    assert k.utils.append_dims(sigma, 4).shape == (2, 1, 1, 1)
    assert k.utils.append_dims(sigma, 1) is not None
    assert k.append_dims(torch.ones(2, 3), 2).shape == (2, 3)
    with pytest.raises(ValueError, match="4 dims but target_dims is 2"):
        k.append_dims(torch.ones(2, 1, 2, 2), 2)
