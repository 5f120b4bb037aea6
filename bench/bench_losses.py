"""Training losses and the bound's terms: the fused ops against `fastdiff.ops.reference.bound` and its autograd."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.ops.reference import bound as losses

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
ARMS = ("fastdiff", "torch")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="learned_range")
# float32 numbers read and written per element of an image: the halves of the output and the images, and the gradient.
TENSORS = {
    "mse": 2,
    "mse with gradient": 5,
    "hybrid": 5,
    "hybrid with gradient": 12,
    "bound terms": 4,
    "bound terms, t = 0": 4,
}


def arms(loss, shape, layout):
    image, wide = shape, (shape[0], 2 * shape[1], *shape[2:])
    x0, x_t, target, output = (
        v.contiguous(memory_format=FORMATS[layout])
        for v in (torch.randint(256, image) / 127.5 - 1, torch.randn(image), torch.randn(image), torch.randn(wide))
    )
    t = torch.zeros(shape[0], dtype=torch.int64) if loss.endswith("t = 0") else torch.randint(1, 1000, shape[:1])
    table = losses.BoundTable.build(DIFFUSION)
    rows = table.rows()
    if loss.startswith("mse"):
        output = output[:, : shape[1]].contiguous(memory_format=FORMATS[layout])

    def fused():
        if loss.startswith("mse"):
            return ops.mse(output, target)
        if loss.startswith("bound terms"):
            return ops.bound_terms(output, x0, x_t, t, rows, learned_variance=True, clip=1.0)
        simple, bound = ops.hybrid_loss(output, target, x0, x_t, t, rows)
        return simple + losses.VLB_WEIGHT * 1000 * bound

    def plain():
        if loss.startswith("mse"):
            return losses.mse(output, target)
        if loss.startswith("hybrid"):
            return losses.hybrid(output, target, x0, x_t, t, table).loss
        prediction, values = output.chunk(2, dim=1)
        mean = table.x0(x_t, t, prediction).clamp(-1, 1)
        return losses.variational_terms(x0, t, mean, table.log_variance(t, x0, values), table), losses.mse(mean, x0)

    both = {"fastdiff": fused, "torch": plain}
    if not loss.endswith("with gradient"):
        return both
    output.requires_grad_()
    return {name: lambda arm=arm: torch.autograd.grad(arm().mean(), output) for name, arm in both.items()}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", TENSORS)
def test_losses_speed(contest, loss, shape, layout, arm):
    size = SHAPES[shape]
    moved = 4 * TENSORS[loss] * torch.Size(size).numel()
    contest(arms(loss, size, layout), arm, group=f"losses {loss} {shape} {layout}", bytes_moved=moved)
