"""A module's engine: made when it is worth it, gone with the module."""

import gc
import weakref

import torch

import fastdiff as fd
from fastdiff.convert.in_engine import engine_of, forget
from support.foreign_networks import make


def test_engine_goes_with_its_module():
    model, _ = make("diffusers")
    fd.accelerate(model)
    seen = weakref.ref(model)
    assert engine_of(model) is engine_of(model)
    del model
    gc.collect()
    assert seen() is None


def test_an_engine_is_made_after_some_looks_or_at_once():
    model, _ = make("lucidrains")
    with torch.no_grad():
        engine = engine_of(model)
        for expected in (True, True, False):
            engine.look(model)
            assert (engine.network is None) == expected
        forget(model)
        assert engine_of(model) is not engine
        engine_of(model).look(model, patience=0)
        assert engine_of(model).network is not None


def test_a_dropout_at_work_is_seen():
    model, _ = make("openai")
    engine = engine_of(model)
    with torch.no_grad():
        engine.look(model, patience=0)
    assert not engine.is_training()
    model.train()
    assert engine.is_training()
