"""Files of unknown origin: no code of theirs runs, and what is wrong with them is named."""

import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

import fastdiff as fd
from support.converted_networks import openai_state, tiny
from support.diffusers_networks import SMALL, diffusers_model
from support.networks import random_unet


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_from_pretrained_runs_no_code_of_a_malicious_pickle(tmp_path):
    trap = tmp_path / "ran"
    torch.save({"time_embed.0.weight": torch.zeros(2), "input_blocks.0.0.weight": Malicious(trap)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious(trap)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=f"{name} is refused: .*could run code"):
            fd.Pipeline.from_pretrained(tmp_path / name)
    assert not trap.exists()
    # The trap is real: opened without the check, it springs.
    pickle.loads((tmp_path / "b.pt").read_bytes())
    assert trap.exists()


def test_from_pretrained_names_a_truncated_file(tmp_path):
    model = diffusers_model(**SMALL)
    model.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors is truncated or damaged"):
        fd.Pipeline.from_pretrained(tmp_path / "unet")
    torch.save(openai_state(random_unet(tiny())), tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    for part in (data[: len(data) // 2], b"", data[:100]):
        (tmp_path / "model.pt").write_bytes(part)
        with pytest.raises(ValueError, match=r"model\.pt is (truncated or damaged|refused)"):
            fd.Pipeline.from_pretrained(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight": torch.zeros(3)}, "is not a network that fastdiff knows"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({"input_blocks.0.0.weight": torch.zeros(4, 3, 3, 3), "time_embed.0.weight": torch.zeros(4, 1)}, "classifier"),
        (
            {
                "input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
                "time_embed.0.weight": torch.zeros(4, 1),
                "input_blocks.1.1.transformer_blocks.0.norm1.weight": torch.zeros(4),
            },
            "latent diffusion",
        ),
        ({"conv_in.weight": torch.zeros(3), "time_embedding.linear_1.weight": torch.zeros(1)}, "give its folder"),
    ],
    ids=["unknown", "numbers", "list", "classifier", "latent", "diffusers"],
)
def test_from_pretrained_says_what_a_file_is_instead(tmp_path, content, said):
    torch.save(content, tmp_path / "thing.pt")
    with pytest.raises(ValueError, match=said):
        fd.Pipeline.from_pretrained(tmp_path / "thing.pt")
