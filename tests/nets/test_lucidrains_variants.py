"""Parts of lucidrains' other versions, against closed forms."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.nets.lucidrains_variants import LayerNorm, StandardizedConv2d, UnetParts, VariantUnet
from support.tolerances import FLOAT32_SUM

PARTS = UnetParts(
    norm_groups=4, standardized=True, layer_norm=True, num_memory=0, divides_values=True, mid_heads=2, mid_head_dim=4,
    halves="convolution",
)  # fmt: skip
SETTINGS = {"dim": 8, "dim_mults": (1, 2)}


def test_layer_norm_is_pytorchs_over_channels():
    torch.manual_seed(0)
    norm, x = LayerNorm(5), torch.randn(2, 5, 3, 4)
    torch.nn.init.normal_(norm.g)
    torch.nn.init.normal_(norm.b)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), norm.g.flatten(), norm.b.flatten()).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_standardized_kernels_ignore_scale_and_offset():
    torch.manual_seed(0)
    conv, x = StandardizedConv2d(3, 4, 3, padding=1).double(), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    conv.weight.data.mul_(1e3)
    before = conv(x)
    conv.weight.data.mul_(7).add_(11)
    # The epsilon beside a variance of 1e5.
    torch.testing.assert_close(conv(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_flat", [False, True])
def test_sizes_that_fit(is_flat):
    parts = UnetParts(**{**vars(PARTS), "is_flat": is_flat})
    unet = VariantUnet(parts, SETTINGS).eval()
    assert unet.divisors == ((1, 2) if is_flat else (2, 2))
    x = torch.randn(1, 3, 1 if is_flat else 4, 6)
    with torch.no_grad():
        assert unet(x, torch.tensor([3])).shape == x.shape
        with pytest.raises(ValueError, match="divisible by 2"):
            unet(x[..., :5], torch.tensor([3]))
