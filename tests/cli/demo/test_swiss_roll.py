"""The two-dimensional demonstration: its data's density is exact, and a short run writes everything."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fastdiff.cli.demo import swiss_roll
from fastdiff.cli.demo.swiss_roll import (
    PROCESSES,
    PointNet,
    SwissRollConfig,
    roll_log_density,
    roll_points,
    run_swiss_roll,
)


def test_roll_density_integrates_to_one_and_has_the_entropy_of_its_points():
    edge = torch.linspace(-1.2, 1.2, 121, dtype=torch.float64)
    density = roll_log_density(torch.cartesian_prod(edge, edge), 500).exp()
    # The sum over a grid of this width has that error.
    assert float(density.sum() * (edge[1] - edge[0]) ** 2) == pytest.approx(1, abs=1e-4)
    # The quadrature has converged, but for a few points beyond the roll's ends.
    points = roll_points(500, 3)
    difference = roll_log_density(points, 2000) - roll_log_density(points)
    # Two quadratures of one density; the largest is where it is next to nothing.
    assert float(difference.abs().median()) < 1e-6
    assert float(difference.abs().max()) < 0.02
    assert float(points.abs().max()) < 1.1


def test_point_net_takes_fractional_times():
    net = PointNet(16, SwissRollConfig().diffusion())
    torch.nn.init.normal_(net.last.weight)
    x = torch.randn(3, 2)
    whole = net(x, torch.tensor([5, 6, 7]))
    torch.testing.assert_close(net(x, torch.tensor([5.0, 6.0, 7.0])), whole)
    assert not torch.equal(net(x, torch.tensor([5.5, 6.0, 7.0]))[0], whole[0])


def test_swiss_roll_writes_everything(tmp_path):
    pytest.importorskip("matplotlib")
    text = io.StringIO()
    config = SwissRollConfig(steps=250, width=48, num_timesteps=30, num_points=200, grid=12, frames=5)
    threads = torch.get_num_threads()
    result = run_swiss_roll(tmp_path, config, console=Console(file=text, width=100))
    assert torch.get_num_threads() == threads
    for name in ("trajectories", "score", "density", "bound"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10
    with Image.open(tmp_path / "trajectories.gif") as moving:
        assert moving.n_frames == 5
    assert "entropy" in text.getvalue()
    # A network that has barely begun: bound above flow above entropy, and all of them numbers.
    assert math.isfinite(result["ode"]["bits_per_dim"])
    assert result["bound"]["bits_per_dim"] > result["data_bits_per_dim"]
    assert result["ode"]["bits_per_dim"] > result["data_bits_per_dim"]


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "preserving"])
def test_swiss_roll_runs_on_every_process(tmp_path, process):
    pytest.importorskip("matplotlib")
    config = SwissRollConfig(steps=150, width=48, num_timesteps=20, process=process, num_points=60, grid=5, frames=3)
    result = run_swiss_roll(tmp_path, config, console=Console(file=io.StringIO(), width=100))
    assert (tmp_path / "score.png").is_file()
    assert math.isfinite(result["ode"]["bits_per_dim"])
    assert result["bound"]["bits_per_dim"] > result["data_bits_per_dim"]


@pytest.mark.parametrize("process", PROCESSES)
def test_training_sees_the_levels_that_tell_the_arms_apart(process):
    """Above a noise of 0.3 the arms, 0.2 apart, are one; the roll itself is 0.03 wide."""
    config = SwissRollConfig(process=process)
    diffusion = config.diffusion()
    density = swiss_roll._density(diffusion, config)
    levels = np.exp(-0.5 * diffusion.schedule.log_snr)
    weights = np.full(len(levels), 1 / len(levels)) if density is None else density / density.sum()
    assert weights[levels < 0.3].sum() > 0.15


def test_swiss_roll_refuses_an_unknown_process(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'flow'"):
        run_swiss_roll(tmp_path, SwissRollConfig(process="flows"))
