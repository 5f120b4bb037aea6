# %% [markdown]
# # Edit
#
# Variations, mixtures, holes filled, and the way to the noise and back, of digits that the model has not seen.

# %%
import os

import torch

import fastdiff as fd

pipe = fd.Pipeline.from_pretrained(os.environ.get("MODEL", "out/demo"))
steps = int(os.environ.get("STEPS", "50"))
digits = fd.data.digits("test")
x = digits.to_model(digits.images[:8])

# %% [markdown]
# Noise an image up to a level and bring it back: at strength 0 it is the image, at 1 a fresh sample.

# %%
strengths = [0.0, 0.3, 0.5, 0.7, 1.0]
varied = [pipe.vary(x, strength=s, seed=0, steps=steps) for s in strengths]
mask = torch.ones_like(x)
mask[..., 2:6, 2:6] = 0
filled = pipe.inpaint(x, mask, seed=0, steps=steps)
rows = [*varied, x * mask, filled]
names = [*(f"strength {s}" for s in strengths), "a hole", "filled"]
labels = [name if i == 0 else "" for name in names for i in range(8)]
fd.figures.plot_samples("edit_vary.png", torch.cat(rows), labels=labels, columns=8)

# %% [markdown]
# ![Rows: the digits at five strengths, with a hole, and filled](edit_vary.png)
#
# Known pixels come back as they were, bit for bit:

# %%
print("known pixels are kept:", bool(torch.equal(filled[mask == 1], x[mask == 1])))

# %% [markdown]
# Two digits mixed in their noise, from one to the other:

# %%
weights = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
mixed = [pipe.interpolate(x[:4], x[4:], weight=w, steps=steps) for w in weights]
labels = [str(w) for _ in range(4) for w in weights]
fd.figures.plot_samples("edit_mix.png", torch.stack(mixed, 1).flatten(0, 1), labels=labels, columns=len(weights))

# %% [markdown]
# ![Four pairs of digits, mixed](edit_mix.png)
#
# To the noise and back. DDIM's own steps can be undone by fixed-point iteration, `exact=True`:

# %%
for exact in (False, True):
    noise = pipe.encode(x, steps=steps, exact=exact)
    error = (pipe.decode(noise, steps=steps, exact=exact) - x).square().mean().sqrt()
    print(f"{'exact' if exact else 'second order'}: back to {float(error):.0e} of [-1, 1]")
