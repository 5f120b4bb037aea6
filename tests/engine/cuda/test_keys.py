"""What makes a recorded graph another one."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff.engine.cuda.keys import goes_with_samples, kind_of, settings_of, static_argument


def changes(model, change):
    before = settings_of(model)
    assert before is not None
    assert settings_of(model) == before
    change(model)
    return settings_of(model) != before


def set_to(name, value):
    return lambda model: setattr(model, name, value)


CHANGES = {
    "a number": set_to("p", 0.25),
    "a flag of a child": lambda model: set_to("training", False)(model[0]),
    "a list": lambda model: model[0].sizes.append(3),
    "another module": lambda model: model.append(nn.SiLU()),
    "a hook": lambda model: model[0].register_forward_hook(lambda *_: None),
    "where a parameter lies": lambda model: set_to("data", model[0].weight.data.clone())(model[0].weight),
    "a type": lambda model: model.half(),
    "a tensor": set_to("scale", torch.ones(2)),
    "another function": set_to("act", F.gelu),
}


@pytest.fixture
def model():
    made = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))
    made.p, made.act, made.scale, made[0].sizes = 0.5, F.silu, torch.zeros(2), [1, 2]
    return made


@pytest.mark.parametrize("name", CHANGES)
def test_change_of_a_module_is_seen(model, name):
    assert changes(model, CHANGES[name])


def test_values_that_are_written_in_place_are_the_graphs_own(model):
    def write(model):
        with torch.no_grad():
            model[0].weight.mul_(2)
        model.scale.add_(1)

    assert not changes(model, write)


def closure():
    value = 3
    return lambda x: x * value


@pytest.mark.parametrize("function", [functools.partial(torch.mul, 2), closure(), nn.SiLU().forward])
def test_what_has_a_state_of_its_own_is_not_known(model, function):
    assert settings_of(function) is None
    model.act = function
    assert settings_of(model) is None


def test_arguments_go_with_samples_or_are_part_of_the_key():
    labels = torch.tensor([3, 1, 4])
    assert goes_with_samples(labels, 3)
    assert not goes_with_samples(labels, 4)
    assert not goes_with_samples(torch.tensor(3), 3)
    assert kind_of(labels, 3) == kind_of(labels + 1, 3)
    assert kind_of(labels, 3) != kind_of(labels.float(), 3)
    assert kind_of(2.0, 3) != kind_of(3.0, 3)
    shared = {"a": 1}
    assert kind_of(shared, 3) == kind_of(shared, 3) != kind_of({"a": 1}, 3)
    assert static_argument(labels, 3, 5).tolist() == [3] * 5
    assert static_argument("word", 3, 5) == "word"
