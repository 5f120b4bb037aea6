"""Recording: what is refused is named by its module. A stand-in has the generator; captures themselves need a GPU."""

import gc

import pytest
import torch
from torch import nn

from fastdiff.engine.cuda import capture


class Generator:
    """Counts what is drawn, as CUDA's does."""

    def __init__(self):
        self.offset = 0

    def get_offset(self):
        return self.offset


@pytest.fixture
def generator(monkeypatch):
    made = Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (made,))
    return made


class Draws(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, x):
        self.generator.offset += 4
        return x


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def names(model):
    return capture._Names(model, torch.device("cuda", 0))


def test_module_that_draws_random_numbers_is_named(generator):
    model = nn.Sequential(nn.Identity(), nn.Sequential(Draws(generator)), nn.Identity())
    with names(model) as found:
        model(torch.zeros(1))
        with pytest.raises(capture.NotCapturable, match=r"^1\.0 \(Draws\) draws from PyTorch's random generator"):
            found.check_random()


def test_model_that_draws_nothing_passes(generator):
    model = nn.Sequential(nn.Identity())
    with names(model) as found:
        model(torch.zeros(1))
        found.check_random()


def test_module_that_fails_is_named_with_the_first_line_of_why(generator):
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": Fails()})["inner"])
    with names(model) as found:
        try:
            model(torch.zeros(1))
        except RuntimeError as error:
            text = found.refusal(error)
    assert text.startswith("1 (Fails) cannot be captured as a CUDA graph (operation not permitted when stream is captu")
    assert "more" not in text


def test_hooks_are_gone_afterwards(generator):
    model = nn.Sequential(nn.Identity())
    with names(model):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_callable_that_is_no_module_is_called_the_model(generator):
    with names(lambda x: x) as found:
        generator.offset = 1
        with pytest.raises(capture.NotCapturable, match=r"^the model draws"):
            found.check_random()


def test_nothing_is_collected_within_a_capture():
    assert gc.isenabled()
    with capture._no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_warm_ups_count_as_recording(monkeypatch):
    assert not capture.is_recording()
    monkeypatch.setattr(capture._state, "warming", True)
    assert capture.is_recording()
