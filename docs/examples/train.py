# %% [markdown]
# # Train
#
# A small network on scikit-learn's handwritten digits: 8x8 pixels, 17 grey values, 1,437 of them to train on. In
# about two minutes on a core the samples become digits.

# %%
import json
import os
from pathlib import Path

import torch

import fastdiff as fd

steps = int(os.environ.get("STEPS", "600"))
digits = fd.data.digits("train")
torch.manual_seed(0)
network = fd.UNet(fd.UNetConfig.preset("digits"))

# %% [markdown]
# What it is to learn: to predict v on a cosine schedule of 100 noising steps, whose first one is about half of a
# grey value.

# %%
diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(100, offset=0.05), prediction="v")
settings = fd.TrainConfig(
    steps=steps, batch_size=64, learning_rate=1e-3, warmup_steps=steps // 10, ema_decay=0.995, flip=False
)
trainer = fd.Trainer(network, diffusion, digits, settings, "out/example")
trainer.run()

# %% [markdown]
# Everything random in step n is a function of (seed, n), so a run that was stopped and goes on ends with the same
# bytes. The log is a line of JSON for each 100 steps.

# %%
log = [json.loads(line) for line in Path("out/example/metrics.jsonl").read_text().splitlines()]
log = [entry for entry in log if "loss" in entry]
fd.figures.plot_loss("train_loss.png", [e["step"] for e in log], [e["loss"] for e in log], title="Loss")
print(f"loss at the end: {log[-1]['loss']:.2f}")

# %% [markdown]
# ![The loss falls](train_loss.png)
#
# The folder holds the averaged weights, with all that they need to be used. Sample 7 of seed 0 is the same digit
# whether it is made alone or among others.

# %%
pipe = fd.Pipeline.from_pretrained("out/example")
x = pipe.sample(48, sampler="unipc", steps=10, seed=0)
alone = pipe.sample(1, sampler="unipc", steps=10, seed=0, sample_ids=[7])
print("the same bits:", bool(torch.equal(alone[0], x[7])))
fd.figures.plot_samples("train_samples.png", x, labels=[""] * len(x), title="UniPC, 10 evaluations each")

# %% [markdown]
# ![48 digits](train_samples.png)
