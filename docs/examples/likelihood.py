# %% [markdown]
# # Likelihood
#
# How many bits does the model need for a pixel of a digit that it has not seen? The digits have 17 grey values,
# so a model that knows nothing needs log2(17) = 4.09.

# %%
import os

import fastdiff as fd

pipe = fd.Pipeline.from_pretrained(os.environ.get("MODEL", "out/demo"))
count = int(os.environ.get("IMAGES", "64"))
digits = fd.data.digits("test")
x = digits.to_model(digits.images[:count])

# %% [markdown]
# The variational bound with every term: the prior, one for each timestep, and the decoder.

# %%
bound = pipe.likelihood(x)
print(f"bound: {bound.mean:.3f} +- {bound.standard_error:.3f} bits/dim, from {bound.evaluations} evaluations in all")
fd.figures.plot_bound("likelihood_terms.png", bound.terms.mean(0), title="Terms of the bound")

# %% [markdown]
# ![Terms of the bound by timestep](likelihood_terms.png)
#
# An unbiased estimate of the same number from a few timesteps for each image, until its error is small enough:

# %%
estimate = pipe.likelihood(x, "estimate", target_error=0.05)
print(f"estimate: {estimate.mean:.3f} +- {estimate.mean_sampling_error:.3f} of these images' bound,", end=" ")
print(f"from {estimate.evaluations} evaluations")

# %% [markdown]
# The density of the probability-flow ODE has no bound in between; it needs gradients and more evaluations.

# %%
density = pipe.likelihood(x[: count // 8 + 1], "ode", tolerance=1e-2)
print(f"density by the ODE: {density.mean:.3f} bits/dim")

# %% [markdown]
# What is likely and what is not, by the model: the digits whose bound is lowest and highest.

# %%
order = bound.total.argsort()
chosen = [*order[:8].tolist(), *order[-8:].tolist()]
labels = [f"{float(bound.total[i]):.2f}" for i in chosen]
fd.figures.plot_samples("likelihood_extremes.png", x[chosen], labels=labels, columns=8)

# %% [markdown]
# ![Above the eight most likely digits, below the eight least](likelihood_extremes.png)
