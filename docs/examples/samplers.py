# %% [markdown]
# # Samplers
#
# A sampler is a table: one row for each evaluation of the network. Here six of them start from the same noise
# with 5, 10, 20 and 50 evaluations.

# %%
import os

import torch

import fastdiff as fd

pipe = fd.Pipeline.from_pretrained(os.environ.get("MODEL", "out/demo"))
counts = [int(n) for n in os.environ.get("COUNTS", "5,10,20,50").split(",")]
table = fd.samplers.unipc(pipe.diffusion, steps=5)
print(table)

# %% [markdown]
# The rows can be looked at, drawn and stored.

# %%
fd.figures.plot_table("samplers_table.png", fd.samplers.unipc(pipe.diffusion, steps=20))
print({name: [round(float(v), 3) for v in table[name]] for name in ("t", "cx", "c0")})

# %% [markdown]
# ![The columns of UniPC's table over its rows](samplers_table.png)

# %%
names = ["ddim", "dpmpp", "unipc", "heun", "dpmpp_sde", "ddpm"]
rows = [pipe.sample(4, sampler=name, steps=n, seed=1) for name in names for n in counts]
labels = [f"{name}, {n}" if i == 0 else "" for name in names for n in counts for i in range(4)]
fd.figures.plot_samples("samplers_grid.png", torch.cat(rows), labels=labels, columns=4 * len(counts))

# %% [markdown]
# ![Six samplers by 5, 10, 20 and 50 evaluations](samplers_grid.png)
#
# How far is each from a long run from the same noise? The root of the mean squared difference, of those that add
# no noise:

# %%
long = pipe.sample(64, sampler="dpmpp", steps=100 if counts[-1] > 10 else 10, seed=1)
for name in names[:4]:
    errors = [(pipe.sample(64, sampler=name, steps=n, seed=1) - long).square().mean().sqrt() for n in counts]
    print(name.ljust(8), "  ".join(f"{n}: {float(error):.3f}" for n, error in zip(counts, errors, strict=True)))
