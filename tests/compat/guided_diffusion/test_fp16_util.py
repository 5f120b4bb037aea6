"""Mixed precision under OpenAI's names: the masters, the scale of the loss, and the state dicts."""

import copy

import pytest
import torch
from torch import nn

from fastdiff.compat.guided_diffusion import fp16_util, logger
from support.guided_networks import tiny_model
from support.tolerances import FLOAT32_SUM


class Net(nn.Module):
    """A network in float16 or float32 whose state dict has its own names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)

    def convert_to_fp16(self):
        self.half()

    def forward(self, x):
        weights = self.first.weight.dtype
        return self.last(torch.tanh(self.first(x.to(weights)))).to(x.dtype)


def loss_of(model, seed=0):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    return (model(x) - x[:, :2] * 2).square().mean()


@pytest.fixture(autouse=True)
def own_logger():
    logger.reset()
    yield
    logger.reset()


def test_groups_and_masters_are_flat_float32_copies():
    model = Net().half()
    groups = fp16_util.get_param_groups_and_shapes(model.named_parameters())
    assert [[name for name, _ in group] for group, _ in groups] == [
        ["first.bias", "last.bias"],
        ["first.weight", "last.weight"],
    ]
    vectors, matrices = fp16_util.make_master_params(groups)
    assert vectors.shape == (10,)
    assert matrices.shape == (1, 48)
    assert {vectors.dtype, matrices.dtype} == {torch.float32}
    parts = fp16_util.unflatten_master_params(groups[1][0], matrices)
    assert torch.equal(parts[1], model.last.weight.float())
    with torch.no_grad():
        matrices.fill_(3.0)
    fp16_util.master_params_to_model_params(groups, [vectors, matrices])
    assert (model.last.weight == 3).all()
    model.last.weight.grad = torch.full_like(model.last.weight, 0.5)
    fp16_util.model_grads_to_master_grads(groups, [vectors, matrices])
    assert matrices.grad.flatten().tolist() == [0.0] * 32 + [0.5] * 16
    assert (vectors.grad == 0).all()
    fp16_util.zero_grad(model.parameters())
    assert (model.last.weight.grad == 0).all()
    fp16_util.zero_master_grads([vectors, matrices])
    assert matrices.grad is None


def test_convert_module_touches_convolutions_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    model.apply(fp16_util.convert_module_to_f16)
    assert [p.dtype for p in model.parameters()] == [torch.float16] * 2 + [torch.float32] * 2
    model.apply(fp16_util.convert_module_to_f32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_trainer_in_float32_is_the_plain_optimizer():
    model, plain = Net(), Net()
    trainer = fp16_util.MixedPrecisionTrainer(model=model)
    opt = torch.optim.AdamW(trainer.master_params, lr=0.1)
    expected = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for seed in range(3):
        trainer.zero_grad()
        trainer.backward(loss_of(model, seed))
        norm = sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5
        assert trainer.optimize(opt)
        assert logger.getkvs()["grad_norm"] == pytest.approx(norm, rel=FLOAT32_SUM)
        logger.dumpkvs()
        expected.zero_grad()
        loss_of(plain, seed).backward()
        expected.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_trainer_in_float16_follows_float32_and_its_scale_adapts():
    model, plain = Net(), Net()
    trainer = fp16_util.MixedPrecisionTrainer(
        model=model, use_fp16=True, fp16_scale_growth=0.25, initial_lg_loss_scale=30
    )
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    opt, expected = (torch.optim.SGD(params, lr=0.1) for params in (trainer.master_params, plain.parameters()))
    before = [p.detach().clone() for p in trainer.master_params]
    taken = []
    for _ in range(40):
        trainer.zero_grad()
        trainer.backward(loss_of(model))
        scale = trainer.lg_loss_scale
        taken.append(trainer.optimize(opt))
        assert trainer.lg_loss_scale == scale + (0.25 if taken[-1] else -1)
        if not any(taken):
            assert all(torch.equal(p, kept) for p, kept in zip(trainer.master_params, before, strict=True))
        if taken[-1]:
            expected.zero_grad()
            loss_of(plain).backward()
            expected.step()
    # 2^30 overflows float16, which ends at 65504.
    assert not taken[0]
    assert sum(taken) > 15
    found = trainer.named_master_params()
    for name, param in plain.named_parameters():
        # float16 has 11 bits.
        torch.testing.assert_close(found[name], param.detach(), rtol=0, atol=4e-3)
        assert torch.equal(model.get_parameter(name), found[name].half())


@pytest.mark.parametrize("use_fp16", [False, True])
def test_state_dicts_have_the_networks_names_and_the_masters_values(use_fp16):
    model, _ = tiny_model()
    names = set(model.state_dict())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = fp16_util.MixedPrecisionTrainer(model=model, use_fp16=use_fp16)
    state = trainer.master_params_to_state_dict(trainer.master_params)
    assert set(state) == names
    assert all(torch.equal(state[name], kept[name]) for name in names)
    with torch.no_grad():
        changed = [torch.full_like(p, 0.25) for p in trainer.master_params]
    state = trainer.master_params_to_state_dict(changed)
    assert all((value == 0.25).all() and value.dtype == torch.float32 for value in state.values())
    back = trainer.state_dict_to_master_params(state)
    assert [p.shape for p in back] == [p.shape for p in trainer.master_params]
    assert all(torch.equal(a, b) for a, b in zip(back, changed, strict=True))
    # The network itself keeps its own.
    assert all(torch.equal(model.state_dict()[name].float(), kept[name].to(value.dtype).float())
               for name, value in model.state_dict().items())  # fmt: skip
    state.pop("out.2.bias")
    with pytest.raises(RuntimeError, match="Missing key"):
        trainer.state_dict_to_master_params(state)


def test_trainer_names_a_network_that_cannot_be_converted():
    with pytest.raises(TypeError, match=r"convert_to_fp16, got a Linear"):
        fp16_util.MixedPrecisionTrainer(model=nn.Linear(1, 1), use_fp16=True)
    assert [fp16_util.check_overflow(x) for x in (1.0, float("inf"), -float("inf"), float("nan"))] == [0, 1, 1, 1]


def their_shapes(state, model):
    """A guided-diffusion optimizer's state: moments of attention have an axis of size 1 more."""
    shapes = [value.shape for value in model.state_dict().values()]
    moments = {
        i: {name: value.reshape(shapes[i]) if value.dim() else value for name, value in values.items()}
        for i, values in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def trained(model, trainer, opt, steps, seed=0):
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        x = torch.randn(1, 3, 32, 32, generator=generator)
        trainer.zero_grad()
        trainer.backward((model(x, torch.tensor([3])) - x).square().mean())
        trainer.optimize(opt)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_an_optimizer_goes_on_from_openais_files_and_writes_such():
    model, _ = tiny_model()
    trainer = fp16_util.MixedPrecisionTrainer(model=model)
    opt = torch.optim.AdamW(trainer.master_params, lr=1e-3)
    trained(model, trainer, opt, 2)
    weights, state = {k: v.clone() for k, v in model.state_dict().items()}, copy.deepcopy(opt.state_dict())
    shapes = [value.shape for value in model.state_dict().values()]
    assert [values["exp_avg"].shape for values in state["state"].values()] == shapes
    assert any(shape != parameter.shape for shape, parameter in zip(shapes, model.parameters(), strict=True))
    # What the optimizer itself holds is not touched.
    assert all(opt.state[parameter]["exp_avg"].shape == parameter.shape for parameter in model.parameters())
    expected = trained(model, trainer, opt, 2, seed=9)
    for given in (state, their_shapes(state, model)):
        again, _ = tiny_model()
        again.load_state_dict(weights)
        other = fp16_util.MixedPrecisionTrainer(model=again)
        resumed = torch.optim.AdamW(other.master_params, lr=1e-3)
        # As classifier_train.py does, before the optimizer has met the trainer.
        resumed.load_state_dict(copy.deepcopy(given))
        found = trained(again, other, resumed, 2, seed=9)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        resumed.load_state_dict(resumed.state_dict())
        assert all(resumed.state[parameter]["exp_avg"].shape == parameter.shape for parameter in again.parameters())
