"""What OpenAI's scripts do, with `guided_diffusion` replaced as sed would: sample, score, guide, upsample, train."""

import argparse
import random
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

import fastdiff as fd
from support.networks import shaken

NETWORK = (
    "--image_size 32 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 16 "
    "--diffusion_steps 8 --noise_schedule cosine --num_heads 2 "
)

IMAGE_SAMPLE = """
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    NUM_CLASSES, add_dict_to_argparser, args_to_dict, create_model_and_diffusion, model_and_diffusion_defaults,
)
parser = argparse.ArgumentParser()
defaults = dict(clip_denoised=True, num_samples=2, batch_size=2, use_ddim=False, model_path="")
defaults.update(model_and_diffusion_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util.dev())
if args.use_fp16:
    model.convert_to_fp16()
model.eval()
model_kwargs = {}
if args.class_cond:
    model_kwargs["y"] = torch.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
sample_fn = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
shape = (args.batch_size, 3, args.image_size, args.image_size)
sample = sample_fn(model, shape, clip_denoised=args.clip_denoised, model_kwargs=model_kwargs)
sample = ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
gathered = [torch.zeros_like(sample) for _ in range(dist.get_world_size())]
dist.all_gather(gathered, sample)
arr = np.concatenate([part.cpu().numpy() for part in gathered])[: args.num_samples]
if dist.get_rank() == 0:
    np.savez(f"{logger.get_dir()}/samples_{'x'.join(map(str, arr.shape))}.npz", arr)
dist.barrier()
logger.log("sampling complete")
"""
IMAGE_NLL = """
from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.script_util import (
    add_dict_to_argparser, args_to_dict, create_model_and_diffusion, model_and_diffusion_defaults,
)
parser = argparse.ArgumentParser()
defaults = dict(data_dir="", clip_denoised=True, num_samples=4, batch_size=2, model_path="")
defaults.update(model_and_diffusion_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.eval()
data = load_data(
    data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size, class_cond=args.class_cond,
    deterministic=True,
)
all_bpd = []
while len(all_bpd) * args.batch_size < args.num_samples:
    batch, kwargs = next(data)
    minibatch = diffusion.calc_bpd_loop(
        model, batch.to(dist_util.dev()), clip_denoised=args.clip_denoised, model_kwargs=kwargs
    )
    total_bpd = minibatch["total_bpd"].mean() / dist.get_world_size()
    dist.all_reduce(total_bpd)
    all_bpd.append(total_bpd.item())
logger.log(f"done: bpd={np.mean(all_bpd)}")
"""
CLASSIFIER_SAMPLE = """
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    NUM_CLASSES, model_and_diffusion_defaults, classifier_defaults, create_model_and_diffusion, create_classifier,
    add_dict_to_argparser, args_to_dict,
)
parser = argparse.ArgumentParser()
defaults = dict(clip_denoised=True, batch_size=2, use_ddim=False, classifier_path="", classifier_scale=1.0)
defaults.update(model_and_diffusion_defaults())
defaults.update(classifier_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
classifier = create_classifier(**args_to_dict(args, classifier_defaults().keys()))
torch.save(classifier.state_dict(), args.classifier_path)
classifier.load_state_dict(dist_util.load_state_dict(args.classifier_path, map_location="cpu"))
def cond_fn(x, t, y=None):
    with torch.enable_grad():
        x_in = x.detach().requires_grad_(True)
        log_probs = torch.log_softmax(classifier(x_in, t), dim=-1)
        selected = log_probs[range(len(log_probs)), y.view(-1)]
        return torch.autograd.grad(selected.sum(), x_in)[0] * args.classifier_scale
def model_fn(x, t, y=None):
    return model(x, t, y if args.class_cond else None)
classes = torch.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
sample_fn = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
sample = sample_fn(
    model_fn, (args.batch_size, 3, args.image_size, args.image_size), clip_denoised=args.clip_denoised,
    model_kwargs={"y": classes}, cond_fn=cond_fn, device=dist_util.dev(),
)
"""
SUPER_RES_SAMPLE = """
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    sr_model_and_diffusion_defaults, sr_create_model_and_diffusion, args_to_dict, add_dict_to_argparser,
)
parser = argparse.ArgumentParser()
defaults = dict(clip_denoised=True, batch_size=1)
defaults.update(sr_model_and_diffusion_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = sr_create_model_and_diffusion(**args_to_dict(args, sr_model_and_diffusion_defaults().keys()))
small = torch.zeros(args.batch_size, 3, args.small_size, args.small_size)
sample = diffusion.p_sample_loop(
    model, (args.batch_size, 3, args.large_size, args.large_size), clip_denoised=args.clip_denoised,
    model_kwargs={"low_res": small},
)
"""
IMAGE_TRAIN = """
from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    model_and_diffusion_defaults, create_model_and_diffusion, args_to_dict, add_dict_to_argparser,
)
from guided_diffusion.train_util import TrainLoop
parser = argparse.ArgumentParser()
defaults = dict(
    data_dir="", schedule_sampler="uniform", lr=1e-3, weight_decay=0.0, lr_anneal_steps=0, batch_size=4, microbatch=-1,
    ema_rate="0.9,0.5", log_interval=1, save_interval=2, resume_checkpoint="", use_fp16=False, fp16_scale_growth=1e-3,
)
defaults.update(model_and_diffusion_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.to(dist_util.dev())
schedule_sampler = create_named_schedule_sampler(args.schedule_sampler, diffusion)
data = load_data(
    data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size, class_cond=args.class_cond
)
loop = TrainLoop(
    model=model, diffusion=diffusion, data=data, batch_size=args.batch_size, microbatch=args.microbatch, lr=args.lr,
    ema_rate=args.ema_rate, log_interval=args.log_interval, save_interval=args.save_interval,
    resume_checkpoint=args.resume_checkpoint, use_fp16=args.use_fp16, fp16_scale_growth=args.fp16_scale_growth,
    schedule_sampler=schedule_sampler, weight_decay=args.weight_decay, lr_anneal_steps=args.lr_anneal_steps,
)
loop.run_loop()
"""
# On a GPU theirs names the device to DistributedDataParallel, which PyTorch refuses on the CPU.
CLASSIFIER_TRAIN = """
from torch.nn.parallel.distributed import DistributedDataParallel as DDP
from guided_diffusion import dist_util, logger
from guided_diffusion.fp16_util import MixedPrecisionTrainer
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser, args_to_dict, classifier_and_diffusion_defaults, create_classifier_and_diffusion,
)
from guided_diffusion.train_util import log_loss_dict, parse_resume_step_from_filename
parser = argparse.ArgumentParser()
defaults = dict(
    data_dir="", val_data_dir="", noised=True, iterations=3, lr=1e-3, weight_decay=0.0, batch_size=4, microbatch=-1,
    schedule_sampler="uniform", resume_checkpoint="", eval_interval=2,
)
defaults.update(classifier_and_diffusion_defaults())
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()
dist_util.setup_dist()
logger.configure()
model, diffusion = create_classifier_and_diffusion(**args_to_dict(args, classifier_and_diffusion_defaults().keys()))
model.to(dist_util.dev())
schedule_sampler = create_named_schedule_sampler(args.schedule_sampler, diffusion)
resume_step = 0
if args.resume_checkpoint:
    resume_step = parse_resume_step_from_filename(args.resume_checkpoint)
    model.load_state_dict(dist_util.load_state_dict(args.resume_checkpoint, map_location=dist_util.dev()))
dist_util.sync_params(model.parameters())
mp_trainer = MixedPrecisionTrainer(model=model, use_fp16=args.classifier_use_fp16, initial_lg_loss_scale=16.0)
model = DDP(model, broadcast_buffers=False, bucket_cap_mb=128, find_unused_parameters=False)
options = dict(batch_size=args.batch_size, image_size=args.image_size, class_cond=True)
data = load_data(data_dir=args.data_dir, random_crop=True, **options)
val_data = load_data(data_dir=args.val_data_dir, **options)
opt = torch.optim.AdamW(mp_trainer.master_params, lr=args.lr, weight_decay=args.weight_decay)
if args.resume_checkpoint:
    opt.load_state_dict(dist_util.load_state_dict(args.resume_checkpoint.replace("model", "opt"), map_location="cpu"))

def forward_backward_log(loader, prefix="train"):
    batch, extra = next(loader)
    labels, batch = extra["y"].to(dist_util.dev()), batch.to(dist_util.dev())
    t, _ = schedule_sampler.sample(batch.shape[0], dist_util.dev())
    logits = model(diffusion.q_sample(batch, t), timesteps=t)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    hits = (logits.topk(5, dim=-1)[1] == labels[:, None]).float()
    log_loss_dict(diffusion, t, {f"{prefix}_loss": loss.detach(), f"{prefix}_acc@5": hits.sum(dim=-1)})
    if loss.requires_grad:
        mp_trainer.zero_grad()
        mp_trainer.backward(loss.mean())

for step in range(args.iterations - resume_step):
    logger.logkv("step", step + resume_step)
    forward_backward_log(data)
    mp_trainer.optimize(opt)
    if not step % args.eval_interval:
        with torch.no_grad(), model.no_sync():
            model.eval()
            forward_backward_log(val_data, prefix="val")
            model.train()
    logger.dumpkvs()
torch.save(mp_trainer.master_params_to_state_dict(mp_trainer.master_params), f"{logger.get_dir()}/model000002.pt")
torch.save(opt.state_dict(), f"{logger.get_dir()}/opt000002.pt")
dist.barrier()
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script in a folder, with flags; gives its names."""
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "log"))

    def runner(script, flags):
        monkeypatch.setattr(sys, "argv", ["script.py", *flags.split()])
        names = {"argparse": argparse, "torch": torch, "np": np, "dist": dist}
        # Noise is PyTorch's, timesteps are NumPy's, crops are Python's.
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        exec(script.replace("guided_diffusion", "fastdiff.compat.guided_diffusion"), names)
        return names

    yield runner
    if dist.is_initialized():
        dist.destroy_process_group()


def saved_model(tmp_path, flags):
    from fastdiff.compat.guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
    from fastdiff.convert.openai_flags import parse_flags

    torch.manual_seed(1)
    model, _ = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **parse_flags(flags)})
    torch.save(shaken(model, 0.05).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    "flags", ["", "--use_ddim True --timestep_respacing ddim4 ", "--learn_sigma True --class_cond 1 "]
)
def test_image_sample_writes_its_archive(run, tmp_path, flags):
    path = saved_model(tmp_path, NETWORK + flags.replace("class_cond 1", "class_cond True"))
    names = run(IMAGE_SAMPLE, f"{NETWORK}{flags}--model_path {path}")
    arr = np.load(tmp_path / "log" / "samples_2x32x32x3.npz")["arr_0"]
    assert arr.shape == (2, 32, 32, 3)
    assert arr.dtype == np.uint8
    assert (arr == names["sample"].numpy()).all()
    assert arr.std() > 10
    assert "sampling complete" in (tmp_path / "log" / "log.txt").read_text()


def test_image_nll_scores_a_folder(run, tmp_path, folder_of_images):
    path = saved_model(tmp_path, NETWORK)
    names = run(IMAGE_NLL, f"{NETWORK}--model_path {path} --data_dir {folder_of_images}")
    assert len(names["all_bpd"]) == 2
    assert all(np.isfinite(value) and value > 0 for value in names["all_bpd"])
    assert f"done: bpd={np.mean(names['all_bpd'])}" in (tmp_path / "log" / "log.txt").read_text()


@pytest.mark.parametrize("ddim", [False, True])
def test_classifier_sample_guides(run, tmp_path, ddim):
    flags = NETWORK + "--classifier_width 32 --classifier_depth 1 --classifier_attention_resolutions 8 "
    flags += f"--classifier_path {tmp_path}/c.pt --use_ddim {ddim} --timestep_respacing 2 "
    free, guided = (run(CLASSIFIER_SAMPLE, f"{flags}--classifier_scale {scale}")["sample"] for scale in (0, 50))
    assert free.shape == (2, 3, 32, 32)
    assert not torch.equal(free, guided)


def test_super_res_sample_gives_large_images(run):
    flags = "--large_size 64 --small_size 16 --num_channels 32 --num_res_blocks 1 --timestep_respacing 2 --num_heads 2 "
    sample = run(SUPER_RES_SAMPLE, flags + "--attention_resolutions 8")["sample"]
    assert sample.shape == (1, 3, 64, 64)
    assert sample.isfinite().all()


def test_image_train_trains_saves_and_goes_on(run, tmp_path, folder_of_images):
    flags = f"{NETWORK}--learn_sigma True --rescale_learned_sigmas True --data_dir {folder_of_images} "
    flags += "--schedule_sampler loss-second-moment --microbatch 2 "
    loop = run(IMAGE_TRAIN, flags + "--lr_anneal_steps 3")["loop"]
    files = {path.name for path in (tmp_path / "log").glob("*.pt")}
    assert files == {f"{name}{step:06d}.pt" for step in (0, 2) for name in ("model", "opt", "ema_0.9_", "ema_0.5_")}
    rows = (tmp_path / "log" / "progress.csv").read_text().splitlines()
    assert len(rows) == 4
    assert {"loss", "mse", "vb", "step", "samples"} <= set(rows[0].split(","))
    saved = torch.load(tmp_path / "log" / "model000002.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in loop.model.state_dict().items())
    again = run(IMAGE_TRAIN, f"{flags}--lr_anneal_steps 2 --resume_checkpoint {tmp_path}/log/model000002.pt")["loop"]
    assert again.resume_step == 2
    assert all(torch.equal(saved[name], value) for name, value in again.model.state_dict().items())
    averages = torch.load(tmp_path / "log" / "ema_0.9_000002.pt", weights_only=True)
    assert all(torch.equal(averages[name], value) for name, value in again.ema[0].state_dict().items())
    assert again.opt.state_dict()["state"][0]["step"] == loop.opt.state_dict()["state"][0]["step"] == 3
    # What it saves, the loader reads with the flags it was trained with.
    own = "".join(flags.split("--schedule_sampler")[0])
    pipe = fd.Pipeline.from_pretrained(tmp_path / "log" / "ema_0.9_000002.pt", flags=own + "--rescale_timesteps False")
    assert pipe.metadata["weights"] == "ema"
    assert pipe.sample(1, steps=2).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("use_fp16", [False, True])
def test_classifier_train_trains_saves_and_goes_on(run, tmp_path, folder_of_images, use_fp16):
    flags = "--image_size 32 --classifier_width 32 --classifier_depth 1 --classifier_attention_resolutions 8 "
    flags += f"--diffusion_steps 100 --data_dir {folder_of_images} --val_data_dir {folder_of_images} "
    flags += f"--classifier_use_fp16 {use_fp16} "
    names = run(CLASSIFIER_TRAIN, flags)
    trainer = names["mp_trainer"]
    rows = (tmp_path / "log" / "progress.csv").read_text().splitlines()
    assert len(rows) == 4
    assert {"train_loss", "val_loss", "train_acc@5", "grad_norm", "param_norm"} <= set(rows[0].split(","))
    assert ("lg_loss_scale" in rows[0]) == use_fp16
    saved = torch.load(tmp_path / "log" / "model000002.pt", weights_only=True)
    assert {value.dtype for value in saved.values()} == {torch.float32}
    again = run(CLASSIFIER_TRAIN, flags + f"--iterations 2 --resume_checkpoint {tmp_path}/log/model000002.pt")
    pairs = zip(again["mp_trainer"].master_params, trainer.master_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # In float16 a step that overflows is left out.
    steps = [[float(state["step"]) for state in ran["opt"].state.values()] for ran in (names, again)]
    assert steps[0] == steps[1]
    assert use_fp16 or set(steps[0]) == {3}
    # What it saves is what classifier_sample.py loads.
    from fastdiff.compat.guided_diffusion.script_util import classifier_defaults, create_classifier

    own = {"image_size": 32, "classifier_width": 32, "classifier_depth": 1, "classifier_attention_resolutions": "8"}
    create_classifier(**{**classifier_defaults(), **own}).load_state_dict(saved)


def test_image_train_in_float16_saves_float32(run, tmp_path, folder_of_images):
    flags = f"{NETWORK}--data_dir {folder_of_images} --batch_size 2 --use_fp16 True --lr_anneal_steps 2 "
    loop = run(IMAGE_TRAIN, flags)["loop"]
    # Convolutions; what is around them stays in float32, as theirs does.
    assert loop.model.input_blocks[0][0].weight.dtype == torch.float16
    assert loop.model.time_embed[0].weight.dtype == torch.float32
    # A new network's last layer is 0 and in float32, so that nothing overflows: the scale grows at both steps.
    assert loop.mp_trainer.lg_loss_scale == pytest.approx(20.002)
    for name in ("model000000.pt", "ema_0.9_000000.pt"):
        saved = torch.load(tmp_path / "log" / name, weights_only=True)
        assert {value.dtype for value in saved.values()} == {torch.float32}
    masters = loop.mp_trainer.named_master_params()
    assert all(torch.equal(param, masters[name].to(param.dtype)) for name, param in loop.model.named_parameters())
