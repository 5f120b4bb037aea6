"""Processes without MPI: one by default, and weights read without running anything."""

import pickle

import pytest
import torch
import torch.distributed as dist

from fastdiff.compat.guided_diffusion import dist_util


@pytest.fixture
def _one_process():
    dist_util.setup_dist()
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_setup_gives_one_process_and_does_nothing_the_second_time():
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    dist_util.setup_dist()
    assert dist_util.dev().type == ("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.arange(3.0)
    dist_util.sync_params([x])
    assert x.tolist() == [0, 1, 2]


def test_several_processes_begin_with_the_weights_of_the_first(monkeypatch):
    sent = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, source: sent.append((tensor, source)))
    parameters = list(torch.nn.Linear(2, 2).parameters())
    dist_util.sync_params(parameters)
    assert [source for _, source in sent] == [0, 0]
    assert all(tensor is parameter for (tensor, _), parameter in zip(sent, parameters, strict=True))


def test_load_state_dict_reads_tensors_and_optimizers_and_refuses_code(tmp_path):
    state = {"weight": torch.arange(3.0), "step": 4}
    torch.save(state, tmp_path / "model.pt")
    loaded = dist_util.load_state_dict(tmp_path / "model.pt")
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["step"] == 4
    moved = dist_util.load_state_dict(str(tmp_path / "model.pt"), map_location="meta")
    assert moved["weight"].device.type == "meta"
    assert moved["step"] == 4
    layer = torch.nn.Linear(1, 1)
    torch.save(torch.optim.AdamW(layer.parameters()).state_dict(), tmp_path / "opt000001.pt")
    assert {"state", "param_groups"} == set(dist_util.load_state_dict(tmp_path / "opt000001.pt"))
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ValueError, match="is refused"):
        dist_util.load_state_dict(tmp_path / "code.pt")
    with pytest.raises(TypeError, match="takes map_location only, got strict"):
        dist_util.load_state_dict(tmp_path / "model.pt", strict=False)
