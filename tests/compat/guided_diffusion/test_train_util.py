"""The training loop's parts: microbatches, averages, the falling learning rate, quartiles, and names of files."""

import itertools

import pytest
import torch
from torch import nn

from fastdiff.compat.guided_diffusion import logger, train_util
from support.guided_process import process
from support.tolerances import FLOAT32


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, t):
        return self.gain * x


class AlwaysThree:
    """Timestep 3 for every image, so that microbatches see what the whole batch sees."""

    def sample(self, batch_size, device):
        return torch.full((batch_size,), 3), torch.ones(batch_size)


@pytest.fixture(autouse=True)
def _log(tmp_path):
    with logger.scoped_configure(str(tmp_path / "log"), format_strs=[]):
        yield


def loop(**options):
    batch = torch.linspace(-1, 1, 4 * 3).reshape(4, 3, 1, 1)
    settings = {"lr": 0.1, "ema_rate": "0.5,0.9", "log_interval": 100, "save_interval": 100, "resume_checkpoint": ""}
    settings |= {"batch_size": 4, "microbatch": -1, "schedule_sampler": AlwaysThree()}
    return train_util.TrainLoop(
        model=Scale(), diffusion=process(), data=itertools.repeat((batch, {})), **(settings | options)
    )


def test_microbatches_add_their_gradients_up():
    gradients = []
    for microbatch in (-1, 2):
        train = loop(microbatch=microbatch)
        torch.manual_seed(0)
        train.forward_backward(*next(train.data))
        gradients.append(train.model.gain.grad.item())
    # Each microbatch's mean counts alike, so two halves give twice the mean's gradient. The noise is drawn in parts.
    assert gradients[1] == pytest.approx(2 * gradients[0], rel=10 * FLOAT32)


def test_averages_follow_their_rates():
    train = loop()
    before = train.model.gain.item()
    train.run_step(*next(train.data))
    after = train.model.gain.item()
    assert after != before
    for rate, average in zip((0.5, 0.9), train.ema, strict=True):
        assert average.gain.item() == pytest.approx(rate * before + (1 - rate) * after, rel=10 * FLOAT32)


def test_the_learning_rate_falls_to_0_and_training_ends():
    train = loop(lr_anneal_steps=4)
    rates = []
    log_step = train.log_step
    train.log_step = lambda: (rates.append(train.opt.param_groups[0]["lr"]), log_step())
    train.run_loop()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert train.step == 4


def test_files_are_found_by_their_names(tmp_path):
    train = loop(lr_anneal_steps=2)
    train.run_loop()
    folder = train_util.get_blob_logdir()
    model = f"{folder}/model000002.pt"
    assert train_util.parse_resume_step_from_filename(model) == 2
    assert train_util.parse_resume_step_from_filename(f"{folder}/other.pt") == 0
    assert train_util.find_ema_checkpoint(model, 2, 0.5) == f"{folder}/ema_0.5_000002.pt"
    assert train_util.find_ema_checkpoint(model, 3, 0.5) is None
    assert train_util.find_resume_checkpoint() is None
    again = loop(resume_checkpoint=model)
    assert again.resume_step == 2
    assert torch.equal(again.model.gain, train.model.gain)
    for ours, theirs in zip(again.ema, train.ema, strict=True):
        assert torch.equal(ours.gain, theirs.gain)


def test_losses_are_logged_by_quarters_of_the_timesteps():
    diffusion = process()
    train_util.log_loss_dict(diffusion, torch.tensor([0, 2, 3, 11]), {"loss": torch.tensor([1.0, 3.0, 5.0, 7.0])})
    assert logger.getkvs() == {"loss": 4.0, "loss_q0": 2.0, "loss_q1": 5.0, "loss_q3": 7.0}
