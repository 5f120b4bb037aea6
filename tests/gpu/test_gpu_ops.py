"""The ops on a GPU through the dispatcher: launched, differentiable, capturable, compilable."""

import pytest
import torch
import torch.nn.functional as F

import fastdiff as fd
from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.ops.reference import bound as losses
from support.networks import two_levels

pytestmark = pytest.mark.gpu
CONFIG = two_levels(in_channels=3, out_channels=3, channels=32, norm_groups=8)


def network(device, dtype=torch.float32):
    torch.manual_seed(0)
    unet = fd.UNet(CONFIG)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
    return unet.to(device, dtype).eval()


def inputs(device, dtype=torch.float32):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last), torch.tensor([0, 10, 500, 999], device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_network_on_a_gpu_matches_float64_on_the_cpu(cuda, dtype):
    x, t = inputs("cpu")
    exact = network("cpu", torch.float64)(x.double(), t)
    found = network(cuda, dtype)(x.to(cuda, dtype), t.to(cuda)).cpu().double()
    # TensorFloat-32 in the convolutions; a dozen layers' roundings in 16 bits.
    tolerance = {torch.float32: 5e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    assert float((found - exact).abs().max() / exact.abs().max()) < tolerance


def test_network_on_a_gpu_has_the_gradients_of_float64(cuda):
    x, t = inputs("cpu")
    grads = []
    for device, dtype in (("cpu", torch.float64), (cuda, torch.float32)):
        unet = network(device, dtype)
        unet(x.to(device, dtype), t.to(device)).square().mean().backward()
        grads.append({name: p.grad.cpu().double() for name, p in unet.named_parameters()})
    for name, exact in grads[0].items():
        # TensorFloat-32 in the convolutions and their gradients.
        assert float((grads[1][name] - exact).norm()) <= 1e-2 * float(exact.norm()) + 1e-7, name


def test_network_in_a_cuda_graph(cuda):
    unet = network(cuda, torch.bfloat16)
    x, t = inputs(cuda, torch.bfloat16)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                unet(x, t)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = unet(x, t)
        x.copy_(x.flip(0))
        graph.replay()
        # 16 bits: another memory plan may choose other algorithms.
        assert torch.allclose(out, unet(x, t), rtol=2e-2, atol=2e-2)


def test_network_compiles_in_one_graph(cuda):
    unet = network(cuda)
    x, t = inputs(cuda)
    with torch.no_grad():
        compiled = torch.compile(unet, fullgraph=True)(x, t)
        # TensorFloat-32 in the convolutions, compiled or not.
        assert torch.allclose(compiled, unet(x, t), rtol=1e-2, atol=1e-2)


def test_losses_on_a_gpu_have_the_values_and_gradients_of_float64(cuda):
    diffusion = Diffusion(NoiseSchedule.linear(1000), variance="learned_range")
    x0, t = inputs("cpu")
    x0 = torch.round(x0.clamp(-1, 1) * 127.5 + 127.5) / 127.5 - 1
    target = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    a = torch.tensor(diffusion.schedule.alphas_cumprod[t.numpy()]).view(-1, 1, 1, 1)
    x_t = (a.sqrt() * x0 + (1 - a).sqrt() * target).float()
    output = torch.cat((target * 0.9, target.flip(0) * 0.3), dim=1)
    found = []
    for device, dtype in (("cpu", torch.float64), (cuda, torch.float32)):
        m, *images = (v.to(device, dtype) for v in (output, target, x0, x_t))
        rows = losses.BoundTable.build(diffusion, device, dtype).rows()
        m.requires_grad_()
        simple, bound = ops.hybrid_loss(m, *images, t.to(device), rows)
        (grad,) = torch.autograd.grad((simple + bound).sum(), m)
        found.append([v.detach().cpu().double() for v in (simple, bound, *grad)])
    for exact, ours in zip(*found, strict=True):
        # Quotients of differences of nearly equal probabilities, in float32.
        assert float((ours - exact).abs().max()) <= 1e-3 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv2d_fused_on_a_gpu_matches_float64(cuda, dtype):
    x, _ = inputs("cpu")
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(3)) / 27**0.5
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    found = ops.conv2d_fused(x.to(cuda, dtype), weight.to(cuda, dtype), implementation="triton").cpu().double()
    # Sums of 27 products, in TensorFloat-32 or from 16 bits.
    assert float((found - exact).abs().max()) <= (1e-4 if dtype == torch.float32 else 3e-2)


def test_samples_on_a_gpu_are_those_of_the_cpu(cuda):
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    table = fd.samplers.ddpm(diffusion, 10)
    options = {"shape": (4, 3, 8, 8), "seed": 3, "progress": False, "runner": "eager"}
    with torch.no_grad():
        on_cpu = fd.sample(network("cpu"), table, **options)
        on_gpu = fd.sample(network(cuda), table, device=cuda, **options).cpu()
    assert float((on_cpu - on_gpu).abs().max()) < 5e-2


def test_norm_of_more_than_two_billion_elements(cuda):
    """Offsets beyond 32 bits: the last sample has its own numbers, not those of a wrapped-around address."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    x = torch.zeros(2, 32, 5856, 5856, device=cuda, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    assert x.numel() > 1 << 31
    x[1, :, -1, -8:] = 3.0
    weight, bias = torch.ones(32, device=cuda), torch.zeros(32, device=cuda)
    y = ops.group_norm_act(x, weight, bias, 8, act=False)
    part = x[1].float()
    expected = (3.0 - part.mean()) / part.var(unbiased=False).add(1e-5).sqrt()
    # bfloat16 has 8 bits.
    assert torch.allclose(y[1, :, -1, -1].float(), expected.expand(32), rtol=2e-2)
    assert not y[0].any()
