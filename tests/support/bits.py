"""What this process' instruction set makes of everything whose bits are promised, a line with a digest for each."""

import hashlib
import warnings

import torch
from torch import Tensor

import fastdiff as fd
from fastdiff import ops, samplers
from fastdiff.engine import Buffer, Instruction
from fastdiff.engine.pack import ALGORITHMS
from fastdiff.engine.pack import OPS as PLAN_OPS
from fastdiff.nets.dropout import keyed_dropout
from fastdiff.nets.lucidrains import Unet
from fastdiff.nets.training_lowering import lower_training
from fastdiff.nets.training_plan import OPS as TRAINING_OPS
from support.engine_instructions import CONVOLUTIONS, convolution, run_one
from support.networks import fan_scaled, random_unet, two_levels

WIDE = {"channels": 16, "norm_groups": 4, "dropout": 0.2}
# Together they have every instruction of training.
TRAINED = {
    "labels": two_levels(**WIDE, num_classes=3),
    "scale and shift": two_levels(**WIDE, in_channels=3, scale_shift_norm=True, resblock_updown=True, head_channels=16),
    "plain resampling": two_levels(**WIDE, conv_resample=False, qkv_layout="legacy", num_heads=2),
}
# Whole vectors, a part of one, and both.
CHANNELS = (48, 7, 20)
SIZE = (9, 13)


def show(name: str, *tensors: Tensor) -> None:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    print(name, digest.hexdigest())


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape)


def image(*shape: int) -> Tensor:
    return numbers(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def show_ops() -> None:
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50))
    table = torch.tensor(diffusion.noising_table(), dtype=torch.float32)
    show("diffuse", *ops.diffuse(image(3, 5, 9, 7).detach(), torch.tensor([0, 20, 49]), table, seed=3))
    linear = [numbers(*shape).requires_grad_() for shape in ((70, 33), (130, 33), (130,))]
    norm = [numbers(70).requires_grad_() for _ in range(2)]
    for name, op, inputs in (
        ("conv3x3", ops.conv3x3, (image(2, 32, 9, 13), image(48, 32, 3, 3), numbers(48).requires_grad_())),
        ("linear", ops.linear, linear),
        ("attention", lambda qkv: ops.attention(qkv, 2, implementation="cpu"), [numbers(2, 70, 96).requires_grad_()]),
        ("mse", ops.mse, (image(2, 3, 9, 7), image(2, 3, 9, 7).detach())),
        ("norm", lambda *given: ops.group_norm_act(*given, 5), (image(2, 70, 9, 7), *norm)),
    ):
        y = op(*inputs)
        show(name, y, *torch.autograd.grad(y.square().sum(), [v for v in inputs if v.requires_grad]))


def show_instructions() -> set[tuple[str, str, str]]:
    """Each of a plan's by itself; returns what was run: op, algorithm, products."""
    ran = set()

    def run(name: str, instruction: Instruction, buffers: tuple[Buffer, ...], layers: list, x: Tensor, *more) -> None:
        ran.add((instruction.op, instruction.algorithm, instruction.products))
        show(name, run_one(instruction, buffers, layers, x, more))

    for products in ("float32", "bfloat16"):
        for case in CONVOLUTIONS:
            ran.add(("conv", case[-1], products))
            show(f"convolution {case} in {products}", convolution(case, True, 2, products=products)[0])
        for d, heads in ((64, 1), (16, 3)):
            width = d * heads
            buffers = (Buffer(*SIZE, 3 * width), Buffer(*SIZE, width))
            attention = Instruction("attention", (0,), 1, heads=heads, products=products)
            run(f"attention of {heads} in {products}", attention, buffers, [], numbers(2, 3 * width, *SIZE))
        buffers = (Buffer(*SIZE, 96), Buffer(*SIZE, 48), Buffer(2, 1, 48), Buffer(*SIZE, 48))
        own_keys = Instruction("attention", (0, 1), 3, norm=2, residual=1, products=products)
        given = ((1, numbers(2, 48, *SIZE)), (2, numbers(2, 48, 2, 1)))
        run(f"attention with keys in {products}", own_keys, buffers, [], numbers(2, 96, *SIZE), *given)
    for channels in CHANNELS:
        x, factors = numbers(2, channels, *SIZE), numbers(2, channels, 2, 1)
        source, pair = Buffer(*SIZE, channels), Buffer(2, 1, channels)
        run(f"stats of {channels}", Instruction("stats", (0,), 1), (source, pair), [], x)
        moments, layer = numbers(2, channels, 2, 1).square(), [(numbers(channels), numbers(channels))]
        norm = Instruction("norm", (0,), 2, stats=(1,), groups=1, parameter="n")
        run(f"norm of {channels}", norm, (source, pair, pair), layer, x, (1, moments))
        for op, size in (("pool", (4, 6)), ("repeat", (18, 26))):
            resampled = Instruction(op, (0,), 1, act=True, norm=2)
            run(f"{op} of {channels}", resampled, (source, Buffer(*size, channels), pair), [], x, (2, factors))
        for kernel in (1, 3):
            layer = [(numbers(24, channels, kernel, kernel), numbers(24))]
            conv = Instruction("conv", (0,), 2, kernel=kernel, pad=kernel // 2, act=True, norm=1, parameter="c")
            run(f"norm read of {channels}", conv, (source, pair, Buffer(*SIZE, 24)), layer, x, (1, factors))
        gain = numbers(channels)
        pixel = Instruction("pixel_norm", (0,), 1, act=True, parameter="n", residual=2)
        run(f"pixel norm of {channels}", pixel, (source,) * 3, [(gain, gain[:0])], x, (2, numbers(2, channels, *SIZE)))
        layer = [(gain, numbers(channels))]
        pixel = Instruction("pixel_norm", (0,), 1, act=True, parameter="n", residual=2, eps=1e-5)
        run(f"layer norm of {channels}", pixel, (source,) * 3, layer, x, (2, numbers(2, channels, *SIZE)))
        pixel = Instruction("pixel_norm", (0,), 1, act=True, norm=2, residual=0)
        run(f"factors of {channels}", pixel, (source, source, pair), [], x, (2, factors))
    for op in ("memory_attention", "linear_attention"):
        remembered = Instruction(op, (0,), 1, heads=3, groups=20, memory=4, parameter="a")
        layer = [(numbers(2, 3, 4, 32), torch.empty(0))]
        run(op, remembered, (Buffer(*SIZE, 288), Buffer(*SIZE, 96)), layer, numbers(2, 288, *SIZE))
    return ran


def show_images() -> None:
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50))
    table = samplers.dpmpp_sde(diffusion, 4)
    net = {"image_size": 16, "in_channels": 3, "out_channels": 3, "attention_resolutions": (8,), "num_heads": 2}
    changes = {"num_heads": 1, "resblock_updown": True, "scale_shift_norm": True}
    for more in (net | {"channels": 32}, net | {"channels": 32} | changes, net | {"channels": 20}):
        unet = random_unet(two_levels(**more))
        for precision in ("fast", "bfloat16"):
            images = fd.sample(unet, table, shape=(3, 3, 16, 16), seed=3, precision=precision, progress=False)
            show(f"images in {precision}", images)
    images = Unet(dim=32, dim_mults=(1, 2), attn_dim_head=20).eval()
    show("lucidrains", fd.sample(images, table, shape=(3, 3, 16, 16), seed=3, runner="native", progress=False))


def show_training() -> set[str]:
    """The result and all gradients of networks as one function; returns the instructions that ran."""
    ran: set[str] = set()
    for name, config in TRAINED.items():
        unet = fan_scaled(fd.UNet(config)).train()
        plan = lower_training(unet, 8, 16)
        ran |= {TRAINING_OPS[number] for code in (plan.forward, plan.backward) for number in code[:, 0].tolist()}
        keyed_dropout(unet).at(1, 2, range(3))
        x, y = numbers(3, config.in_channels, 8, 16), torch.arange(3) if config.num_classes else None
        out = unet(x, torch.arange(3) * 100, y)
        out.square().sum().backward()
        show(f"training, {name}", out)
        for parameter, value in unet.named_parameters():
            show(f"training, {name}, {parameter}", value.grad)
    return ran


def main() -> None:
    """All of it, on one thread; raises where an instruction was not run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    show_ops()
    ran = show_instructions()
    assert {op for op, _, _ in ran} == set(PLAN_OPS)
    for products in ("float32", "bfloat16"):
        assert {algorithm for op, algorithm, of in ran if (op, of) == ("conv", products)} == set(ALGORITHMS)
    show_images()
    assert show_training() == set(TRAINING_OPS), "an instruction of training was not run"


if __name__ == "__main__":
    main()
