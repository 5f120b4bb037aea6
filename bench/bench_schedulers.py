"""Drop-in schedulers' steps, and an accelerated pipeline, against diffusers.

A round of a scheduler is a whole run of `STEPS` steps over a fixed model output; an accelerated pipeline samples 8
images of the Ho CIFAR-10 network in 50 DDIM steps.
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="the peer is in the bench extra")

import fastdiff as fd  # noqa: E402
from fastdiff.compat import diffusers as drop_in  # noqa: E402
from fastdiff.convert import from_unet  # noqa: E402

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}
STEPS = 20
KINDS = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DDIMInverseScheduler",
    "RePaintScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
]
ARMS = ("fastdiff", "diffusers")
CONSTRUCTOR = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverSinglestepScheduler": {"lower_order_final": True},
}
# Without a jump back in time, which is not a step.
SET_TIMESTEPS = {"RePaintScheduler": {"jump_length": 1, "jump_n_sample": 1}}
# diffusers' integrates numerically: half a second for a run.
ROUNDS = {"LMSDiscreteScheduler": 20}
PIPELINE_ROUNDS = 4


def steps_of(module, kind, shape):
    """A run of steps with its set_timesteps, as a pipeline makes it for every batch of images."""
    scheduler = getattr(module, kind)(**CONSTRUCTOR.get(kind, {}))
    x, m = torch.randn(shape), torch.randn(shape)
    # RePaint's known pixels: the left half.
    known = (
        (torch.randn(shape), (torch.arange(shape[-1]) < shape[-1] // 2).float()) if kind == "RePaintScheduler" else ()
    )

    def run():
        scheduler.set_timesteps(STEPS, **SET_TIMESTEPS.get(kind, {}))
        scheduler.is_scale_input_called = True
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(m, t, state, *known).prev_sample
        return state

    return torch.inference_mode()(run)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_scheduler_speed(contest, kind, shape, arm):
    size = SHAPES[shape]
    arms = {"fastdiff": steps_of(drop_in, kind, size), "diffusers": steps_of(diffusers, kind, size)}
    # Read x and the model's output, write x', per step.
    moved = STEPS * 12 * torch.Size(size).numel()
    contest(arms, arm, group=f"scheduler {kind} {shape}", bytes_moved=moved, rounds=ROUNDS.get(kind))


def pipelines():
    unet = fd.UNet(fd.UNetConfig.preset("ho-cifar10")).eval()

    def pipe():
        made = diffusers.DDIMPipeline(from_unet(unet).eval(), diffusers.DDIMScheduler())
        made.set_progress_bar_config(disable=True)
        return made

    def call(which):
        generator = torch.Generator().manual_seed(0)
        return lambda: which(batch_size=8, generator=generator, num_inference_steps=50, output_type="pt")

    return {"fastdiff": call(drop_in.accelerate(pipe())), "diffusers": call(pipe())}


@pytest.mark.parametrize("arm", ARMS)
def test_accelerated_pipeline_speed(contest, arm):
    contest(pipelines(), arm, group="accelerate Ho CIFAR-10 8 x 50", bytes_moved=0, rounds=PIPELINE_ROUNDS)
