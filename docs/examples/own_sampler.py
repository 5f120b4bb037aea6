# %% [markdown]
# # A sampler of your own
#
# A function from a process to a table of coefficients. Everything else runs it: the C++ loop, a GPU, the server,
# the program without Python. This one adds fresh noise only in the noisier half of the way.

# %%
import os

import numpy as np
import torch

import fastdiff as fd

pipe = fd.Pipeline.from_pretrained(os.environ.get("MODEL", "out/demo"))
steps = int(os.environ.get("STEPS", "20"))


def noisy_start(diffusion: fd.Diffusion, steps: int, *, until: float = 0.5) -> fd.CoefficientTable:
    """Ancestral noise in the first rows, as many as `until` says of all; none after them."""
    levels = fd.samplers.visited(diffusion, steps)
    # x = alpha x_0 + sigma eps at steps + 1 levels, from noise to image.
    alpha, sigma = levels.alpha, levels.sigma
    # The predicted image is px * x + pm * output.
    px, pm = levels.x0()
    ancestral = sigma[1:] / sigma[:-1] * np.sqrt(1 - (alpha[:-1] / alpha[1:]) ** 2)
    noise = np.where(np.arange(steps) < until * steps, ancestral, 0.0)
    # What is left of the predicted noise, for each unit of sigma.
    kept = np.sqrt(sigma[1:] ** 2 - noise**2) / sigma[:-1]
    columns = {"t": levels.t, "px": px, "pm": pm, "clip": np.ones(steps)}
    columns |= {"cx": kept, "c0": alpha[1:] - kept * alpha[:-1], "s": noise}
    return fd.CoefficientTable(columns, "noisy_start", alphas=alpha, sigmas=sigma)


# %% [markdown]
# It is a pure function, so it can be tested without a network: with `until=0` it has to be DDIM, with `until=1`
# DDIM with its noise.

# %%
ddim = fd.samplers.ddim(pipe.diffusion, steps)
noisy = fd.samplers.ddim(pipe.diffusion, steps, eta=1.0)
for column in ("cx", "c0", "s"):
    assert np.allclose(noisy_start(pipe.diffusion, steps, until=0)[column], ddim[column])
    assert np.allclose(noisy_start(pipe.diffusion, steps, until=1)[column], noisy[column])

# %% [markdown]
# Its order, measured on Gaussian data for whom the solution is known; DDIM's is 1:

# %%
order = fd.samplers.convergence_order(noisy_start, until=0)
print(f"order: {order:.1f}")

# %% [markdown]
# The table as numbers over its rows:

# %%
table = noisy_start(pipe.diffusion, steps)
fd.figures.plot_table("own_sampler_table.png", table)

# %% [markdown]
# ![Columns of the table over its rows](own_sampler_table.png)
#
# And what it makes of the same noise as DDIM and DDPM:

# %%
rows = [pipe.sample(12, sampler=one, seed=2) for one in (ddim, table, noisy)]
labels = [name if i == 0 else "" for name in ("ddim", "noisy_start", "ddim, eta=1") for i in range(12)]
fd.figures.plot_samples("own_sampler_samples.png", torch.cat(rows), labels=labels)

# %% [markdown]
# ![DDIM, this one, and DDIM with noise](own_sampler_samples.png)
#
# `table.to_json()` ships it with a model, and a name makes it known to everything in this program:

# %%
fd.samplers.register("noisy_start", noisy_start)
x = pipe.sample(2, sampler="noisy_start", steps=steps, seed=2, sample_ids=[3, 4])
print("the same samples by name:", bool(torch.equal(x, rows[1][3:5])))
