"""The benchmark of training steps: its peer is the same network, and it prints every line."""

import cpu_train
import torch
from plain_unet import PlainUNet, plain_step

from fastdiff.nets.unet import UNet
from support.networks import two_levels


def test_bench_trains_a_plain_network_of_the_same_size():
    for config in (cpu_train.DIGITS, two_levels()):
        plain, unet = PlainUNet(config), UNet(config)
        assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in unet.parameters())
        x = torch.randn(2, 1, 8, 8)
        assert plain(x, torch.tensor([0, 999])).shape == unet(x, torch.tensor([0, 999])).shape


def test_bench_races_two_steps_and_prints_them(tmp_path):
    images = torch.randint(0, 17, (8, 1, 8, 8), dtype=torch.uint8)
    arms = {"fastdiff": cpu_train.ours(images, 17, two_levels(), 2, str(tmp_path), flip=False)}
    arms["PyTorch"] = plain_step(images, 2, two_levels(), 17)
    found = cpu_train.measure("digits", 2, arms, rounds=3, warmup=1)
    about = {"processor": "p", "threads": 2, "isa": "i", "load": 0, "commit": "c", "versions": {"torch": "2"}}
    text = cpu_train.to_markdown(about, [found, found])
    assert text.count("| digits | 2 |") == 2
    assert f"{found['times_faster']:.2f}x" in text
