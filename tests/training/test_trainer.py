"""Tests of fastdiff.training.trainer, with fastdiff.training.config and fastdiff.training.log.

Independent oracle: a training loop of a dozen lines, with the noise contract in NumPy and PyTorch's Adam.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.files.checkpoint import load_model
from fastdiff.files.data import (
    DataScaling,
    ImageData,
    batch_indices,
    flip_mask,
)
from fastdiff.nets.unet import UNet, UNetConfig
from fastdiff.ops.reference import bound as losses
from fastdiff.process import noise
from fastdiff.process.diffusion import Diffusion
from fastdiff.training.trainer import TrainConfig, Trainer, TrainProgress
from support.tolerances import FLOAT32_DEEP, FLOAT32_FEW
from support.training_runs import CONFIG, HYBRID, SCHEDULE, SIMPLE, digests, images, metrics, network, trainer

TOLERANCE = {
    # float32 through a network of about ten layers, in two orders of summation, and a few steps of Adam on top, whose
    # first steps divide the gradient by its own size.
    "loss": 1e-5,
    "weights": 1e-4,
    # A step of Adam is 1e-2 long whatever the gradient's size. A convolution's rounding (WINOGRAD) is a few percent of
    # the smallest gradients that are compared, and so of their steps.
    "adam": 5e-4,
}


def reference_batch(data: ImageData, config: TrainConfig, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, x_t, t and eps of a step from the formulas, in float32."""
    index = batch_indices(len(data), config.batch_size, step, config.seed)
    values = data.images.numpy()[index].astype(np.float64)
    mirrored = flip_mask(config.batch_size, step, config.seed)
    values[mirrored] = values[mirrored][..., ::-1]
    x0 = values * 2 / 16 - 1
    ids = np.arange(config.batch_size)
    t = noise.integers(config.seed, ids, len(SCHEDULE), noise.Stream.TRAIN_TIME, step)
    eps = noise.normals(config.seed, ids, x0[0].size, noise.Stream.TRAIN_NOISE, step).reshape(x0.shape)
    abar = SCHEDULE.alphas_cumprod[t][:, None, None, None]
    x_t = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps
    return torch.tensor(x0).float(), torch.tensor(x_t).float(), torch.tensor(t), torch.tensor(eps).float()


def test_training_is_hos_algorithm_one(tmp_path: Path) -> None:
    data, config = images(), dataclasses.replace(CONFIG, steps=4, clip_norm=0.5)
    diffusion = Diffusion(SCHEDULE)
    trained = network(dropout=0.0)
    Trainer(trained, diffusion, data, config, tmp_path).run()

    unet = network(dropout=0.0)
    averages = [p.detach().clone() for p in unet.parameters()]
    # Adam divides a gradient by its own size and 1e-8: of one near 1e-8 it makes a step of rounding errors.
    steady = [torch.ones_like(p, dtype=torch.bool) for p in unet.parameters()]
    optimizer = torch.optim.Adam(unet.parameters(), foreach=False)
    for step in range(4):
        _, x_t, t, eps = reference_batch(data, config, step)
        loss = ((unet(x_t, t) - eps) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in unet.parameters() if p.grad is not None))
        for p in unet.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, 0.5 / norm)
        steady = [s & ((p.grad == 0) | (p.grad.abs() > 1e-6)) for s, p in zip(steady, unet.parameters(), strict=True)]
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 4)
        optimizer.step()
        decay = (1 + step) / (10 + step)
        averages = [decay * a + (1 - decay) * p.detach() for a, p in zip(averages, unet.parameters(), strict=True)]
        entry = metrics(tmp_path)[step]
        assert entry["step"] == step + 1
        assert entry["loss"] == pytest.approx(loss.item(), rel=TOLERANCE["loss"])
        assert entry["grad_norm"] == pytest.approx(norm, rel=TOLERANCE["weights"])
        assert entry["learning_rate"] == optimizer.param_groups[0]["lr"]
    sampled = load_model(tmp_path).unet
    assert sum(int(s.sum()) for s in steady) > 0.8 * sum(s.numel() for s in steady)
    pairs = zip(trained.parameters(), unet.parameters(), sampled.parameters(), averages, steady, strict=True)
    found = [((a - b).abs().detach()[s], (c - d).abs().detach()[s]) for a, b, c, d, s in pairs]
    for errors in map(torch.cat, zip(*found, strict=True)):
        assert float((errors < TOLERANCE["weights"]).double().mean()) > 0.99
        assert float(errors.max()) < TOLERANCE["adam"]


def test_loss_falls(tmp_path: Path) -> None:
    data = dataclasses.replace(
        images(2), images=torch.tensor([0, 16], dtype=torch.uint8).repeat_interleave(16).view(2, 1, 4, 4)
    )
    config = dataclasses.replace(CONFIG, steps=120, batch_size=16, log_every=20, checkpoint_every=1000, flip=False)
    Trainer(network(dropout=0.0), SIMPLE, data, config, tmp_path).run()
    losses = [entry["loss"] for entry in metrics(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]


def test_hybrid_trains_both_halves(tmp_path: Path) -> None:
    unet = network(out_channels=2)
    config = dataclasses.replace(CONFIG, steps=1, loss="hybrid")
    Trainer(unet, HYBRID, images(), config, tmp_path).run()
    # The last layer starts at zero.
    for half in unet.conv_out.weight.detach():
        assert (half != 0).all()


@pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")
@pytest.mark.parametrize("resampling", ["convolutions", "blocks"])
def test_training_is_the_same_to_the_bit_for_any_number_of_threads(tmp_path: Path, resampling: str) -> None:
    """Every kind of layer, with sums that PyTorch would cut by threads: over a batch, an image, and all weights."""
    config = UNetConfig(
        image_size=16, in_channels=3, out_channels=3, channels=48, channel_mult=(1, 2), num_res_blocks=1, num_heads=2,
        attention_resolutions=(8,), norm_groups=8, num_classes=3, dropout=0.1,
        resblock_updown=resampling == "blocks", scale_shift_norm=resampling == "blocks",
    )  # fmt: skip
    pixels = torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageData(pixels, torch.arange(40) % 3, DataScaling(256), "test")
    found = set()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        settings = dataclasses.replace(CONFIG, steps=3, batch_size=33, clip_norm=0.1)
        folder = tmp_path / str(threads)
        result = Trainer(UNet(config), Diffusion(SCHEDULE), data, settings, folder).run()
        losses = tuple((entry["loss"], entry["grad_norm"]) for entry in metrics(folder))
        tensors = [digests(result.checkpoint)[name] for name in ("training.safetensors", "model.safetensors")]
        found.add((*tensors, losses))
    assert len(found) == 1


def test_labels_and_precision_reach_the_network(tmp_path: Path) -> None:
    unet = network(num_classes=3)
    assert unet.label_emb is not None
    before = unet.label_emb.weight.detach().clone()
    Trainer(unet, SIMPLE, images(labels=True), CONFIG, tmp_path / "labels").run()
    assert (unet.label_emb.weight != before).any(dim=1).all()
    losses = []
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, steps=6, precision=precision)
        Trainer(network(), SIMPLE, images(), config, tmp_path / precision).run()
        losses.append(metrics(tmp_path / precision)[-1]["loss"])
    assert losses[0] != losses[1]
    # Seven bits of mantissa over ten layers.
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_nothing_global_is_changed(tmp_path: Path) -> None:
    unet = network().eval()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    Trainer(unet, SIMPLE, images(), CONFIG, tmp_path).run()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # noqa: NPY002
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == (threads, dtype, grad)
    assert not torch.is_autocast_enabled("cpu")
    assert not unet.training


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path)

    def poison(entry: TrainProgress) -> None:
        if entry.step == 5:
            with torch.no_grad():
                run.unet.conv_out.weight.fill_(math.inf)

    expected = (
        r"the loss is (nan|inf) at step 6, so training stopped; the checkpoint .*step_00000004 is intact\. Try a "
        r"learning_rate below 0\.01, warmup_steps above 4, and look at the data; the run goes on from there"
    )
    with pytest.raises(RuntimeError, match=expected):
        run.run(progress=poison)
    assert all(bool(p.isfinite().all()) for p in load_model(tmp_path).unet.parameters())
    assert trainer(tmp_path).step == 4


def test_what_happens_is_logged_under_the_packages_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fastdiff"):
        trainer(tmp_path).run(until=2)
        trainer(tmp_path, learning_rate=1e-3, override=True)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in said[:2]] == ["step 1 of 2", "step 2 of 2"]
    assert said[2:] == [
        f"saved {tmp_path}/checkpoints/step_00000002",
        f"going on from {tmp_path}/checkpoints/step_00000002",
        "from step 2 on learning_rate is 0.001, it was 0.01",
    ]


def test_the_start_is_called_where_the_folder_is_free(tmp_path: Path) -> None:
    started: list[int] = []
    trainer(tmp_path).run(until=1, on_start=lambda: started.append(1))
    with open(tmp_path / "train.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another process is training in"):
            trainer(tmp_path).run(on_start=lambda: started.append(2))
    assert started == [1]


def test_class_names_are_kept_and_are_not_compared(tmp_path: Path) -> None:
    data, unet = images(labels=True), network(num_classes=3)
    named = dataclasses.replace(data, label_names=("a", "b", "c"))
    Trainer(unet, SIMPLE, data, CONFIG, tmp_path).run(until=2)
    assert "classes" not in load_model(tmp_path).metadata["data"]
    Trainer(unet, SIMPLE, named, CONFIG, tmp_path).run(until=4)
    assert load_model(tmp_path).metadata["data"]["classes"] == ["a", "b", "c"]


def test_gradients_make_room_for_what_a_checkpoint_takes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(until=1)
    assert all(parameter.grad is None for parameter in run.unet.parameters())


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=1)
    with open(tmp_path / "train.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another process is training in"):
            trainer(tmp_path).run()
    assert trainer(tmp_path).run().step == 6


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], Diffusion, dict[str, Any], str]] = {
    "simple for learned": (
        {"out_channels": 2},
        {},
        HYBRID,
        {},
        "'learned_range' needs loss 'hybrid' or 'vlb', got ",
    ),
    "hybrid for fixed": (
        {},
        {"loss": "hybrid"},
        SIMPLE,
        {},
        "'fixed_small' needs loss 'simple', 'huber' or 'vlb', got",
    ),
    "channels in": ({"in_channels": 3}, {}, SIMPLE, {}, "images have 1 channels, but the network takes 3"),
    "channels out": ({}, {"loss": "hybrid"}, HYBRID, {}, "the network needs 2 out_channels for images of 1"),
    "no labels": ({"num_classes": 3}, {}, SIMPLE, {}, "takes 3 classes, but the images have no labels"),
    "labels": ({"num_classes": 2}, {}, SIMPLE, {"labels": True}, r"labels must be in 0\.\.1, got 0\.\.2"),
    "size": ({"image_size": 8, "channel_mult": (1, 1, 1, 1)}, {}, SIMPLE, {}, "must be multiples of 8, got 4x4"),
    "empty": ({}, {}, SIMPLE, {"num": 0}, "there are no images"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    changes, settings, diffusion, kind, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        Trainer(network(**changes), diffusion, images(**kind), dataclasses.replace(CONFIG, **settings), tmp_path)


def test_values_beyond_the_levels_are_refused(tmp_path: Path) -> None:
    data = dataclasses.replace(images(levels=256), scaling=DataScaling(17))
    with pytest.raises(ValueError, match=r"images with 17 levels must be in 0\.\.16, got"):
        Trainer(network(), SIMPLE, data, CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"must be float32 to be trained, got torch\.bfloat16"):
        Trainer(network().bfloat16(), SIMPLE, images(), CONFIG, tmp_path)


@pytest.mark.parametrize("case", ["simple", "hybrid", "continuous"])
def test_trainer_has_the_loss_of_plain_pytorch(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = case != "simple"
    config = dataclasses.replace(CONFIG, loss="hybrid" if learned else "simple")
    unet = network(out_channels=2 if learned else 1, dropout=0.0)
    data = images(levels=None if case == "continuous" else 17)
    subject = Trainer(unet, HYBRID if learned else SIMPLE, data, config, tmp_path)

    def plain_hybrid(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
        *given, rows = tensors
        terms = losses.hybrid(*given, losses.BoundTable.from_rows(rows, True), **options)
        return terms.mse, terms.vlb / rows.shape[0]

    def run() -> tuple[Tensor, list[Tensor]]:
        unet.zero_grad()
        loss = subject._gradients(3)
        return loss.detach(), [parameter.grad.clone() for parameter in unet.parameters() if parameter.grad is not None]

    fused, fused_grads = run()
    monkeypatch.setattr(ops, "hybrid_loss", plain_hybrid)
    monkeypatch.setattr(ops, "mse", losses.mse)
    plain, plain_grads = run()
    assert torch.allclose(plain, fused, rtol=TOLERANCE["loss"])
    for ours, theirs in zip(fused_grads, plain_grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=FLOAT32_DEEP, atol=FLOAT32_FEW)


def test_trainer_updates_all_of_a_group_by_one_call(tmp_path: Path) -> None:
    """docs/performance-gpu.md says so, and why."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.overloadpacket._qualified_op_name)
            return func(*args, **(kwargs or {}))

    subject = trainer(tmp_path)
    with Calls():
        subject._train_step(0)
    if ops.has_extension():
        assert names.count("fastdiff::update") == 1
        assert names.count("aten::_fused_adamw_") == 0
        return
    assert names.count("aten::_fused_adamw_") == 1
    assert names.count("aten::_foreach_lerp_") == 1
