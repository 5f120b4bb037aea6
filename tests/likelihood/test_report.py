"""Reports: JSON and pictures of every score."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff as fd
from fastdiff import likelihood
from support.gaussian_networks import gaussian_network
from support.networks import small_pipeline

D = fd.Diffusion(fd.NoiseSchedule.linear(50), "eps", "fixed_large")
MODEL = gaussian_network(D, 0.25)
OPTIONS = {"decoder": "gaussian", "clip": None}
X = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (60, 1, 2, 2)))
DIGITS = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_reports_are_json_and_pictures(tmp_path):
    pipe = small_pipeline()
    scores = {method: pipe.likelihood(DIGITS[:3], method=method) for method in ("bound", "estimate", "iwae")}
    scores["rate_distortion"] = pipe.likelihood(DIGITS[:3], method="rate_distortion")
    scores["ode"] = pipe.likelihood(DIGITS[:2], method="ode", tolerance=1e-2)
    scores["compare"] = likelihood.compare(pipe, pipe, DIGITS[:3])
    for name, score in scores.items():
        path = likelihood.write_report(tmp_path / f"{name}.json", score, per_image=True, about={"model": "m"})
        values = json.loads(path.read_text())
        assert values["method"] == ("bound" if name == "estimate" else name)
        assert values["model"] == "m"
        assert len(values["totals"]) in (2, 3)
    one = likelihood.report(pipe.likelihood(DIGITS[:1]))
    assert one["standard_error"] is None
    assert len(one["terms"]) == 6
    for name in ("bound", "estimate", "rate_distortion"):
        with Image.open(likelihood.draw_report(tmp_path / f"{name}.png", scores[name], title="digits")) as picture:
            assert min(picture.size) > 400
    some = likelihood.bound(MODEL, D, X, timesteps=[0, 1, 7, 30], **OPTIONS)
    likelihood.draw_report(tmp_path / "some.png", some)
    with pytest.raises(ValueError, match="no picture"):
        likelihood.draw_report(tmp_path / "ode.png", scores["ode"])
    with pytest.raises(ValueError, match=r"\.json"):
        likelihood.write_report(tmp_path / "a.txt", scores["ode"])
