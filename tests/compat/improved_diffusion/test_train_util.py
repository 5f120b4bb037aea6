"""improved-diffusion's training loop: the learning rate of a step, and the optimizer's files."""

import itertools

import pytest
import torch

from fastdiff.compat.improved_diffusion import logger, train_util
from support.guided_networks import tiny_model


@pytest.fixture(autouse=True)
def _log(tmp_path):
    with logger.scoped_configure(str(tmp_path / "log"), format_strs=[]):
        yield


def loop(**options):
    model, process = tiny_model()
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = {"lr": 0.1, "ema_rate": 0.5, "log_interval": 100, "save_interval": 100, "resume_checkpoint": ""}
    settings |= {"batch_size": 2, "microbatch": -1}
    return train_util.TrainLoop(
        model=model, diffusion=process, data=itertools.repeat((batch, {})), **(settings | options)
    )


def test_each_step_has_the_rate_that_it_is_due():
    train = loop(lr_anneal_steps=4)
    rates = []
    train.opt.register_step_pre_hook(lambda opt, *_: rates.append(opt.param_groups[0]["lr"]))
    train.run_loop()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_the_float16_optimizer_file_holds_one_flat_master(tmp_path):
    train = loop(use_fp16=True, lr_anneal_steps=1)
    train.run_loop()
    state = torch.load(tmp_path / "log" / "opt000000.pt", weights_only=True)
    assert list(state["state"]) in ([], [0])
    (master,) = train.mp_trainer.master_params
    assert master.shape == (sum(parameter.numel() for parameter in train.model.parameters()),)
    again = loop(use_fp16=True, resume_checkpoint=str(tmp_path / "log" / "model000000.pt"))
    assert torch.equal(again.mp_trainer.master_params[0], master)
