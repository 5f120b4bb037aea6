"""Whole pipelines with a tiny random UNet2DModel: theirs, theirs with our scheduler, and accelerated."""

import copy
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

import fastdiff as fd  # noqa: E402
from fastdiff.compat import diffusers as ours  # noqa: E402
from support.tolerances import PEER_RUN  # noqa: E402

SAME_IMAGES = 1e-4
# The engine costs a digit of float32, and the first step of an untrained network divides by alpha = 1 / 157.
SAME_NETWORK = 1e-3


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
    return model.eval()


def pipeline(kind, unet, scheduler):
    pipe = getattr(diffusers, f"{kind}Pipeline")(unet, scheduler)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, seed=0, **options):
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return pipe(batch_size=2, generator=generator, num_inference_steps=6, output_type="np", **options).images


CALLS = [("DDPM", {}), ("DDIM", {}), ("DDIM", {"eta": 1.0}), ("DDIM", {"use_clipped_model_output": True})]


@pytest.mark.parametrize(("kind", "options"), CALLS, ids=str)
def test_pipeline_runs_unchanged_with_our_scheduler(unet, kind, options):
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    pipe = pipeline(kind, unet, scheduler)
    expected = images(pipe, **options)
    pipe.scheduler = getattr(ours, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    np.testing.assert_allclose(images(pipe, **options), expected, atol=SAME_IMAGES)


@pytest.mark.parametrize(("kind", "options"), CALLS, ids=str)
@pytest.mark.parametrize("generators", ["one", "list"])
def test_accelerated_pipeline_gives_the_same_images(unet, kind, options, generators):
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    pipe = pipeline(kind, unet, scheduler)

    def seeds():
        return 0 if generators == "one" else [torch.Generator().manual_seed(s) for s in (5, 6)]

    expected = images(pipe, seeds(), **options)
    assert ours.accelerate(pipe) is pipe
    assert isinstance(pipe, getattr(diffusers, f"{kind}Pipeline"))
    assert isinstance(pipe.unet, ours.FusedUNet2DModel)
    assert isinstance(pipe.scheduler, ours.FusedScheduler)
    np.testing.assert_allclose(images(pipe, seeds(), **options), expected, atol=SAME_NETWORK)
    assert ours.accelerate(pipe) is pipe


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_accelerated_pipeline_is_the_fused_loop_step_by_step(unet, kind):
    """Without a generator the noise is fastdiff's own: the loop and single steps of the scheduler agree."""
    pipe = ours.accelerate(pipeline(kind, unet, getattr(diffusers, f"{kind}Scheduler")()))
    pipe.scheduler.seed = 7
    options = {"eta": 1.0} if kind == "DDIM" else {}
    torch.manual_seed(3)
    whole = images(pipe, None, **options)
    torch.manual_seed(3)
    x = torch.randn(2, 3, 16, 16)
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x, **options).prev_sample
    single = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(whole, single, atol=SAME_IMAGES)
    torch.manual_seed(3)
    assert np.array_equal(whole, images(pipe, None, **options))


def test_accelerated_pipeline_saves_and_loads(unet, tmp_path):
    """Its network and scheduler files are those of diffusers."""
    pipe = ours.accelerate(pipeline("DDIM", unet, diffusers.DDIMScheduler()))
    expected = images(pipe)
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    np.testing.assert_allclose(images(pipeline("DDIM", theirs, scheduler)), expected, atol=SAME_NETWORK)
    whole = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    assert type(whole.unet) is diffusers.UNet2DModel
    assert type(whole.scheduler) is diffusers.DDIMScheduler
    back = ours.FusedUNet2DModel.from_pretrained(tmp_path / "unet").eval()
    np.testing.assert_allclose(images(pipeline("DDIM", back, scheduler)), expected, atol=SAME_IMAGES)


def test_fused_unet_equals_the_model(unet):
    fused = ours.FusedUNet2DModel.from_model(unet)
    assert fused.dtype == torch.float32
    assert fused.device == torch.device("cpu")
    assert fused.config.sample_size == unet.config.sample_size == 16
    assert fused.config.in_channels == 3
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in (7, 7.0, torch.tensor(7), torch.tensor([7, 300, 999])):
        with torch.no_grad():
            expected = unet(x, t).sample
            torch.testing.assert_close(fused(x, t).sample, expected, atol=PEER_RUN, rtol=PEER_RUN)
            torch.testing.assert_close(fused(x, t, return_dict=False)[0], expected, atol=PEER_RUN, rtol=PEER_RUN)
    fused(x, 7).sample.sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


def test_fused_unet_says_why_the_engine_does_not_run_it(unet):
    fused = ours.FusedUNet2DModel.from_model(unet).eval()
    fused.unet.middle_block[1].register_forward_hook(lambda *_: None)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match=r"slower module is used.*middle_block\.1 has one"):
        fused(x, 10)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(x, 10)


def test_fused_unet_wraps_a_fastdiff_model():
    config = fd.UNetConfig(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
    unet = fd.UNet(config).eval()
    pipe = pipeline("DDPM", ours.FusedUNet2DModel(unet), ours.DDPMScheduler())
    assert images(pipe).shape == (2, 8, 8, 3)


def test_accelerate_of_networks_takes_a_pipelines(unet):
    unet = copy.deepcopy(unet)
    pipe = pipeline("DDPM", unet, diffusers.DDPMScheduler())
    expected = images(pipe)
    report = fd.accelerate(pipe)
    assert report.replaced[0].what.startswith("the whole network in the engine")
    assert pipe.unet is unet
    np.testing.assert_allclose(images(pipe), expected, atol=SAME_NETWORK)


def test_accelerate_refuses_what_it_has_no_fused_form_of(unet):
    with pytest.raises(ValueError, match=r"takes a DDPMPipeline or .*, got UNet2DModel: .*fastdiff\.accelerate"):
        ours.accelerate(unet)
    pipe = pipeline("DDPM", unet, diffusers.PNDMScheduler())
    with pytest.raises(ValueError, match="takes a DDPMScheduler or DDIMScheduler, got PNDMScheduler"):
        ours.accelerate(pipe)


@pytest.mark.parametrize("swapped", ["at the constructor", "afterwards"])
def test_stock_pipeline_with_our_scheduler_saves_what_diffusers_alone_loads(unet, tmp_path, swapped):
    """The index names diffusers' class: a program that never heard of fastdiff opens the folder."""
    mine = ours.DDPMScheduler(variance_type="fixed_large")
    pipe = diffusers.DDPMPipeline(unet, mine if swapped == "at the constructor" else diffusers.DDPMScheduler())
    pipe.scheduler = mine
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    code = f"""
import sys
sys.modules["fastdiff"] = None
from diffusers import DDPMPipeline
print(type(DDPMPipeline.from_pretrained({str(tmp_path)!r}).scheduler).__module__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "diffusers.schedulers.scheduling_ddpm"
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path, scheduler=mine).scheduler) is ours.DDPMScheduler
    assert ours.DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.variance_type == "fixed_large"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_copied_pipeline_computes_with_its_own_weights(unet, kind, copied):
    pipe = ours.accelerate(pipeline(kind, unet, getattr(diffusers, f"{kind}Scheduler")()))
    before = images(pipe)
    other = copied(pipe)
    assert type(other) is type(pipe)
    assert isinstance(other, getattr(diffusers, f"{kind}Pipeline"))
    assert np.array_equal(images(other), before)
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(0.5)
    changed = images(other)
    assert np.array_equal(images(pipe), before)
    assert np.abs(changed - before).max() > 1e-3
    # The same weights in a new pipeline give the same images.
    fresh = ours.accelerate(pipeline(kind, ours.FusedUNet2DModel(copy.deepcopy(other.unet.unet)), pipe.scheduler))
    fresh.unet.config = pipe.unet.config
    assert np.array_equal(images(fresh), changed)


def test_without_diffusers_the_error_names_the_extra():
    code = "import sys; sys.modules['diffusers'] = None; import fastdiff.compat.diffusers"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert 'needs diffusers: pip install "fastdiff-ddpm[diffusers]"' in run.stderr
