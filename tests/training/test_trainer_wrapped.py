"""Training of networks in PyTorch's wrappers, or with another project's names: what is saved is read by all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

import fastdiff as fd
from fastdiff.compat.guided_diffusion.unet import SuperResModel, UNetModel
from fastdiff.files.checkpoint import latest_checkpoint, load_model
from fastdiff.training.ema import Ema
from support.training_runs import CONFIG, SIMPLE, digests, images, network

SHORT = dataclasses.replace(CONFIG, steps=2)


def compiled(unet: nn.Module) -> Any:
    return torch.compile(unet, backend="eager")


def openai(kind: type[UNetModel] = UNetModel) -> UNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(4, 1, 32, 1, 1, (), channel_mult=(1,))


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": compiled,
    "parallel": DataParallel,
    "both": lambda unet: DataParallel(compiled(unet)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_trainer_of_a_wrapped_network_writes_the_bytes_of_the_plain_one(tmp_path: Path, name: str) -> None:
    for folder, unet in (("plain", network()), ("wrapped", WRAPPERS[name](network()))):
        result = fd.Trainer(unet, SIMPLE, images(), SHORT, tmp_path / folder).run()
        assert result.checkpoint == latest_checkpoint(tmp_path / folder)
    first, second = (latest_checkpoint(tmp_path / folder) for folder in ("plain", "wrapped"))
    assert first is not None
    assert second is not None
    assert digests(first) == digests(second)
    resumed = fd.Trainer(network(), SIMPLE, images(), dataclasses.replace(SHORT, steps=2), tmp_path / "wrapped")
    assert resumed.step == 2


def test_trainer_of_an_openai_network_writes_what_is_read_again(tmp_path: Path) -> None:
    unet = openai()
    trainer = fd.Trainer(unet, SIMPLE, images(), SHORT, tmp_path / "run")
    trainer.run()
    raw = load_model(tmp_path / "run", weights="raw").unet
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([1, 7])
    with torch.no_grad():
        assert torch.equal(raw(x, t), unet.eval()(x, t))
    again = fd.Trainer(openai(), SIMPLE, images(), SHORT, tmp_path / "run")
    assert again.step == 2
    assert torch.equal(again.unet.conv_out.weight, unet.conv_out.weight)


def test_trainer_refuses_in_its_constructor_what_it_could_not_save(tmp_path: Path) -> None:
    altered = network()
    altered.further = nn.Linear(2, 2)
    for unet, said in (
        (altered, r"further\.weight is surplus"),
        (openai(SuperResModel), "more than its configuration"),
    ):
        with pytest.raises(ValueError, match=said):
            fd.Trainer(unet, SIMPLE, images(), SHORT, tmp_path / "run")
    with pytest.raises(TypeError, match=r"must be a fastdiff\.UNet, got Linear"):
        fd.Trainer(nn.Linear(1, 1), SIMPLE, images(), SHORT, tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_ema_of_a_wrapped_network_has_the_plain_names() -> None:
    unet = network()
    average = Ema(compiled(unet), 0.9)
    assert list(average.state_dict()) == [name for name, _ in unet.named_parameters()]
    average.copy_to(DataParallel(network()))
    average.load_state_dict({f"module._orig_mod.{name}": value for name, value in average.state_dict().items()})
    with average.applied_to(compiled(unet)):
        pass
