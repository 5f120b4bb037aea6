"""The variational bound against a per-timestep loop in PyTorch, and the estimate against all terms.

`python bench/likelihood.py` writes bench/results/likelihood.json and .md; `--quick` only shows that it runs. For the
estimate it trains a network of the digits, which takes a minute; `--model` measures another one as well.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import machine, race
from torch import nn

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.cli.demo.digits import digits_training, digits_unet
from fastdiff.convert import from_unet
from fastdiff.nets.recipes import RECIPES, build_diffusion
from fastdiff.ops.reference.bound import discretized_gaussian_log_likelihood, normal_kl

TRAINING_STEPS = 400
SEEDS = 5
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
RESULTS = Path(__file__).parent / "results" / "likelihood"


def straightforward_bound(network: Network, diffusion: fd.Diffusion, x: torch.Tensor, levels: int) -> torch.Tensor:
    """[B] bits/dim, as one writes it: all images at one t, from T-1 down to 0, in PyTorch."""
    s = diffusion.schedule
    abar = torch.tensor(s.alphas_cumprod, dtype=torch.float32)
    coef1, coef2 = (torch.tensor(c, dtype=torch.float32) for c in (s.posterior_mean_coef1, s.posterior_mean_coef2))
    posterior = torch.tensor(s.posterior_log_variance_clipped, dtype=torch.float32)
    reverse = torch.tensor(diffusion.variance_logs()[0], dtype=torch.float32)
    total = torch.zeros(len(x))
    with torch.no_grad():
        for t in range(len(s) - 1, -1, -1):
            noise = torch.randn_like(x)
            x_t = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * noise
            eps = network(x_t, torch.full((len(x),), t))
            x0 = ((x_t - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()).clamp(-1, 1)
            mean = coef1[t] * x0 + coef2[t] * x_t
            if t == 0:
                term = -discretized_gaussian_log_likelihood(x, mean, 0.5 * reverse[t], levels=levels)
            else:
                term = normal_kl(coef1[t] * x + coef2[t] * x_t, posterior[t], mean, reverse[t])
            total += term.flatten(1).mean(dim=1) / math.log(2)
    return total + likelihood.prior_term(diffusion, x).float()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a trained model of digits to estimate too, such as out/demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    images, num_timesteps = (16, 20) if options.quick else (256, 1000)
    data = fd.data.digits("test").take(range(images))
    x = data.to_model(data.images)
    levels = data.scaling.levels or 256
    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.preset("digits")).eval()
    nn.init.normal_(unet.conv_out.weight, std=0.02)
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(num_timesteps), "eps", "fixed_small")
    # The same network with the same weights in plain PyTorch, and our own module, some of whose ops are in C++.
    plain = from_unet(unet).eval()
    in_pytorch: Network = lambda x, t: plain(x, t, return_dict=False)[0]  # noqa: E731
    seconds = race(
        {
            "loop": lambda: straightforward_bound(in_pytorch, diffusion, x, levels),
            "loop_over_unet": lambda: straightforward_bound(unet, diffusion, x, levels),
            "fastdiff": lambda: likelihood.bound(unet, diffusion, x, levels=levels),
        },
        rounds=options.rounds,
        warmup=0,
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "images": images,
        "timesteps": num_timesteps,
        "loop_s": median["loop"],
        "loop_over_unet_s": median["loop_over_unet"],
        "fastdiff_s": median["fastdiff"],
        "times_faster": median["loop"] / median["fastdiff"],
        "times_faster_than_loop_over_unet": median["loop_over_unet"] / median["fastdiff"],
        "same_bound": [
            float(straightforward_bound(unet, diffusion, x[:16], levels).mean()),
            likelihood.bound(unet, diffusion, x[:16], levels=levels).mean,
        ],
        "estimates": [_estimate(pipe, x) for pipe in _networks(options.model, num_timesteps, options.quick)],
        "machine": machine(),
    }
    text = _markdown(result)
    print(text)
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(text)
    return 0


def _networks(model: Path | None, num_timesteps: int, quick: bool) -> list[fd.Pipeline]:
    """Trained networks of the digits: one trained here with so many timesteps, and the one that is given."""
    settings = RECIPES["digits"]["diffusion"] | {"timesteps": num_timesteps}
    diffusion, _ = build_diffusion(settings)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        training = digits_training(5 if quick else TRAINING_STEPS)
        fd.Trainer(fd.UNet(digits_unet()), diffusion, fd.data.digits("train"), training, folder).run()
        found = [fd.Pipeline.from_pretrained(folder)]
    return found if model is None else [*found, fd.Pipeline.from_pretrained(model)]


def _estimate(pipe: fd.Pipeline, x: torch.Tensor) -> dict[str, object]:
    """Evaluations for a standard error of 1 %, against all T."""
    full = pipe.likelihood(x)
    runs = [pipe.likelihood(x, "estimate", seed=seed) for seed in range(SEEDS)]
    evaluations = statistics.median(run.evaluations for run in runs)
    return {
        "timesteps": pipe.diffusion.num_timesteps,
        "training_steps": pipe.metadata["step"],
        "all_terms": full.mean,
        "evaluations_of_all_terms": full.evaluations,
        "evaluations": evaluations,
        "times_fewer": full.evaluations / evaluations,
        "standard_error_share": float(np.mean([run.mean_sampling_error / run.mean for run in runs])),
        "largest_deviation_share": max(abs(run.mean / full.mean - 1) for run in runs),
    }


def _markdown(result: dict[str, object]) -> str:
    estimates, m = result["estimates"], result["machine"]
    assert isinstance(estimates, list)
    assert isinstance(m, dict)
    about = f"{m['processor']}, {m['threads']} threads, {m['isa']}, load {m['load']}, commit {m['commit']}."
    speed = (
        f"The full bound on {result['images']} digits, T = {result['timesteps']}: {result['fastdiff_s']:.2f} s; a loop "
        f"over t in PyTorch {result['loop_s']:.2f} s; {result['times_faster']:.1f}x faster. The same loop over "
        f"fd.UNet's own module: {result['loop_over_unet_s']:.2f} s; {result['times_faster_than_loop_over_unet']:.1f}x."
    )
    fewer = [
        f"The bound of {result['images']} digits to a standard error of 1 %, asked of a network with T = "
        f"{e['timesteps']} after {e['training_steps']} training steps: {e['evaluations']:,.0f} evaluations instead of "
        f"{e['evaluations_of_all_terms']:,}, {e['times_fewer']:.1f}x fewer, to {e['standard_error_share']:.2%}. "
        f"Largest deviation of {SEEDS} seeds from the bound with all terms: {e['largest_deviation_share']:.2%}."
        for e in estimates
    ]
    return "\n\n".join([about, speed, *fewer]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
