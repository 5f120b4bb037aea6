"""The documentation says what the code does: its table of samplers is generated, its examples run."""

import re
from pathlib import Path

import numpy as np
import torch

import fastdiff as fd
from fastdiff.samplers.catalogue import to_markdown
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

DOCS = Path(__file__).parents[2] / "docs"


def test_docs_list_the_samplers_as_they_are():
    text = (DOCS / "samplers.md").read_text()
    listed = re.search(r"<!-- samplers -->\n(.*)<!-- end of samplers -->", text, re.DOTALL)[1]
    assert listed == to_markdown()


def test_docs_example_of_an_own_sampler_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "samplers.md").read_text(), re.DOTALL)
    place = {"model": lambda x, t: torch.tanh(x)}
    exec(code, place)
    table, images = place["table"], place["images"]
    assert images.shape == (4, 1, 8, 8)
    assert images.isfinite().all()
    # Ancestral noise at the start, DDIM at the end.
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000))
    noisy, quiet = fd.samplers.ddim(diffusion, 20, eta=1.0), fd.samplers.ddim(diffusion, 20)
    for key in ("t", "px", "pm", "cx", "c0", "s"):
        np.testing.assert_allclose(table[key][0], noisy[key][0], rtol=FLOAT64_DIFFERENCE)
        np.testing.assert_allclose(table[key][-1], quiet[key][-1], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
    assert len(re.search(r"def fading_ddim.*?return [^\n]*", code, re.DOTALL)[0].splitlines()) <= 20
