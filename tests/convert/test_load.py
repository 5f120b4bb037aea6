"""The one loader: what it recognises, what it says it cannot know, what it refuses."""

import json
import pickle
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors.torch import save_file
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff import convert
from fastdiff.cli.app import app
from fastdiff.convert.openai_flags import rescaled
from fastdiff.convert.save import save_as
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.tensors import QkvLayout
from support.diffusers_networks import SMALL, diffusers_model
from support.networks import random_unet, small_preset
from support.tolerances import PEER_NETWORK

LINEAR = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
LEARNED = fd.Diffusion(fd.NoiseSchedule.cosine(50), variance="learned_range")


def tiny(**overrides):
    fields = {
        "image_size": 8,
        "out_channels": 6,
        "channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.0,
        "num_heads": 2,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "qkv_layout": "legacy",
    }
    return UNetConfig.from_dict({**fields, **overrides})


def ho(**overrides):
    fields = {"image_size": 8, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    return UNetConfig.from_dict({**fields, "attention_resolutions": (4,), "dropout": 0.0, **overrides})


def openai_state(unet, **options):
    return convert.to_layout(unet.state_dict(), unet.config, "openai", **options)


@torch.no_grad()
def assert_same_network(pipe, unet, tolerance=0.0):
    config = unet.config
    x = torch.randn(2, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([1, 40])
    y = None if config.num_classes is None else torch.tensor([0, 1])
    expected = unet(x, t, y)
    assert (pipe.unet(x, t, y) - expected).abs().max() <= tolerance * expected.abs().max()


HINTS = {"image_size": 8, "num_heads": 2, "qkv_layout": "legacy"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resblock_updown": True},
        {"num_classes": 3},
        {"conv_resample": False},
        {"scale_shift_norm": False},
        {"channel_mult": (1,), "attention_resolutions": ()},
        {"out_channels": 3},
        {"in_channels": 1, "out_channels": 2},
    ],
    ids=str,
)
def test_from_pretrained_reads_an_openai_file(tmp_path, change):
    unet = random_unet(tiny(**change))
    diffusion = LEARNED if unet.config.out_channels == 2 * unet.config.in_channels else LINEAR
    torch.save(openai_state(unet), tmp_path / "model.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS, diffusion=diffusion)
    assert pipe.unet.config == unet.config
    assert pipe.diffusion == diffusion
    assert_same_network(pipe, unet)
    assert pipe.metadata["format"] == "openai"
    assert pipe.metadata["said"]["qkv_layout"] == "unet="


def test_from_pretrained_reads_a_ddim_file_and_its_average(tmp_path):
    raw, ema = random_unet(ho(), 1), random_unet(ho(), 2)
    states = [convert.to_layout(unet.state_dict(), unet.config, "ddim") for unet in (raw, ema)]
    states = [{f"module.{name}": value for name, value in state.items()} for state in states]
    optimizer = torch.optim.Adam(raw.parameters()).state_dict()
    torch.save([states[0], optimizer, 7, 1000, states[1]], tmp_path / "ckpt.pth")
    known = {"unet": {"image_size": 8}, "diffusion": LINEAR}
    pipe = fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", **known)
    assert pipe.metadata["weights"] == "ema"
    assert pipe.unet.config == ho()
    assert_same_network(pipe, ema)
    assert_same_network(fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", weights="raw", **known), raw)
    with pytest.raises(ValueError, match="flags= are those of OpenAI"):
        fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", flags="--image_size 8")


def test_from_pretrained_reads_hos_file_by_its_published_name(tmp_path):
    config = UNetConfig.preset("ho-cifar10")
    with torch.device("meta"):
        shapes = fd.UNet(config).state_dict()
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    path = tmp_path / "ema_diffusion_cifar10_model-790000.ckpt"
    torch.save(convert.to_layout(state, config, "ddim"), path)
    pipe = fd.Pipeline.from_pretrained(path)
    assert pipe.unet.config == config
    assert pipe.diffusion == fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    assert pipe.metadata["weights"] == "ema"
    assert "file's name" in pipe.metadata["said"]["diffusion"]


def test_from_pretrained_says_what_an_openai_file_cannot_tell(tmp_path):
    torch.save(openai_state(random_unet(tiny(num_classes=3))), tmp_path / "ema_0.9999_1.pt")
    with pytest.raises(ValueError, match="does not say") as caught:
        fd.Pipeline.from_pretrained(tmp_path / "ema_0.9999_1.pt")
    message = str(caught.value)
    for part in ("image_size", "num_heads", "qkv_layout", "T, schedule", "preset=", "flags=", "3 classes", "learned"):
        assert part in message


def test_from_pretrained_takes_the_flags_of_openais_scripts(tmp_path):
    flags = (
        "--image_size 8 --num_channels 32 --num_res_blocks 1 --num_heads 2 --channel_mult 1,2 "
        "--attention_resolutions 4 --learn_sigma True --diffusion_steps 50 --noise_schedule cosine "
        "--rescale_timesteps True --batch_size 4 --use_new_attention_order True"
    )
    unet = random_unet(tiny(qkv_layout="new"))
    torch.save(openai_state(unet), tmp_path / "ema_0.9999_000010.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "ema_0.9999_000010.pt", flags=flags)
    assert pipe.unet.config == unet.config
    assert pipe.diffusion.schedule == rescaled(fd.NoiseSchedule.cosine(50))
    assert pipe.metadata["weights"] == "ema"
    assert_same_network(pipe, unet)
    assert pipe.sample(1, steps=2).shape == (1, 3, 8, 8)


def test_from_pretrained_with_a_preset_rescales_the_times_of_improved_diffusion(tmp_path):
    config = UNetConfig.preset("iddpm-cifar10")
    with torch.device("meta"):
        shapes = fd.UNet(config).state_dict()
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    torch.save(convert.to_layout(state, config, "openai"), tmp_path / "mine.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "mine.pt", preset="iddpm-cifar10")
    assert pipe.unet.config == config
    assert pipe.diffusion.schedule.timesteps[-1] == 999.75


def test_from_pretrained_refuses_a_preset_that_the_file_is_not(tmp_path):
    torch.save(openai_state(random_unet(tiny())), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"channels is 32 in the file, 128 there"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", preset="iddpm-cifar10")
    with pytest.raises(ValueError, match="variance is learned, but the process has 'fixed_large'"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS, diffusion=LINEAR)
    with pytest.raises(ValueError, match="unknown key 'channels'"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet={"channels": 32})


def test_from_pretrained_refuses_optimizers_by_name_and_by_content(tmp_path):
    state = torch.optim.Adam(random_unet(tiny()).parameters()).state_dict()
    for name, said in (("opt000100.pt", "by its name"), ("model000100.pt", "param_groups")):
        torch.save(state, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*optimizer.*{said}|{name}.*{said}"):
            fd.Pipeline.from_pretrained(tmp_path / name)


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


def test_from_pretrained_sends_super_resolution_networks_to_their_class(tmp_path):
    torch.save(openai_state(random_unet(tiny(in_channels=6))), tmp_path / "upsampler.pt")
    with pytest.raises(ValueError, match="sr_create_model"):
        fd.Pipeline.from_pretrained(tmp_path / "upsampler.pt")


@pytest.mark.parametrize("place", ["pipeline", "root", "unet", "bin"])
def test_from_pretrained_reads_a_diffusers_folder(tmp_path, place):
    model = diffusers_model(**SMALL, num_class_embeds=3)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100)
    folder = tmp_path / "model"
    if place == "root":
        model.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    else:
        DDPMPipeline(model, scheduler).save_pretrained(folder, safe_serialization=place != "bin")
    pipe = fd.Pipeline.from_pretrained(folder / "unet" if place == "unet" else folder)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 99]), torch.tensor([2, 0])
    with torch.no_grad():
        expected = model(x, t, class_labels=y).sample
        assert (pipe.unet(x, t, y) - expected).abs().max() < PEER_NETWORK * expected.abs().max()
    assert pipe.diffusion == fd.Diffusion(fd.NoiseSchedule.cosine(100))
    assert pipe.metadata["format"] == "diffusers"


def test_from_pretrained_says_what_a_diffusers_folder_lacks(tmp_path):
    diffusers_model(**SMALL).save_pretrained(tmp_path / "m" / "unet")
    with pytest.raises(ValueError, match=r"does not say the process"):
        fd.Pipeline.from_pretrained(tmp_path / "m" / "unet")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "m" / "unet", diffusion=LINEAR)
    assert pipe.diffusion == LINEAR
    config = tmp_path / "m" / "unet" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}))
    with pytest.raises(ValueError, match=r"config\.json: unknown block 'CrossAttnDownBlock2D' in down_block_types"):
        fd.Pipeline.from_pretrained(tmp_path / "m" / "unet", diffusion=LINEAR)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    with pytest.raises(ValueError, match="StableAudioPipeline without a unet"):
        fd.Pipeline.from_pretrained(tmp_path / "other")


def test_save_as_diffusers_is_read_by_diffusers(tmp_path):
    unet = random_unet(ho(num_heads=1))
    pipe = fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.linear(20), variance="fixed_large"))
    folder = save_as(pipe, tmp_path / "theirs", "diffusers")
    peer = DDPMPipeline.from_pretrained(folder)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 19])
    with torch.no_grad():
        expected = unet(x, t)
        assert (peer.unet(x, t).sample - expected).abs().max() < PEER_NETWORK * expected.abs().max()
    assert isinstance(peer.scheduler, DDPMScheduler)
    assert peer.scheduler.config.variance_type == "fixed_large"
    torch.testing.assert_close(
        peer.scheduler.betas.double(), torch.tensor(pipe.diffusion.schedule.betas), rtol=1e-5, atol=0
    )
    images = peer(
        batch_size=1, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    assert images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize("preset", ["ho-cifar10", "iddpm-cifar10", "adm-imagenet64", "adm-imagenet256", "digits"])
@pytest.mark.filterwarnings("ignore:.*their code would compute something else")
def test_convert_goes_in_a_circle_exactly(tmp_path, preset):
    config = small_preset(preset)
    diffusion = fd.Diffusion(
        fd.NoiseSchedule.cosine(100),
        variance="learned_range" if config.out_channels == 2 * config.in_channels else "fixed_large",
    )
    pipe = fd.Pipeline(random_unet(config), diffusion)
    expected = pipe.unet.state_dict()
    paths = [save_as(pipe, tmp_path / "fastdiff", "fastdiff")]
    for i, target in enumerate(["openai", "diffusers", "openai", "fastdiff", "diffusers", "fastdiff"]):
        path = tmp_path / f"{i}_{target}{'.pt' if target == 'openai' else ''}"
        paths.append(save_as(fd.Pipeline.from_pretrained(paths[-1]), path, target))
    for path in paths:
        loaded = fd.Pipeline.from_pretrained(path)
        assert loaded.diffusion == diffusion
        moved = convert.to_layout(loaded.unet.state_dict(), loaded.unet.config, "diffusers")
        ours = convert.to_layout(expected, config, "diffusers")
        assert all(torch.equal(moved[key], ours[key]) for key in ours)


@pytest.mark.parametrize(
    ("preset", "layout"),
    [(name, published.qkv_layout) for name, published in PRESETS.items()]
    + [("iddpm-cifar10", layout) for layout in get_args(QkvLayout) if layout != PRESETS["iddpm-cifar10"].qkv_layout],
)
@pytest.mark.filterwarnings("ignore:.*their code would compute something else")
def test_convert_keeps_the_outputs_of_every_preset_and_qkv_layout(tmp_path, preset, layout):
    """Through each form and back; diffusers says what it has not, and the rest is exact."""
    published = PRESETS[preset]
    size = min(published.image_size, max(32, 1 << (len(published.channel_mult) - 1)))
    config = small_preset(preset, qkv_layout=layout, image_size=size)
    learns = config.out_channels == 2 * config.in_channels
    variance = "learned_range" if learns else "fixed_large"
    pipe = fd.Pipeline(random_unet(config), fd.Diffusion(fd.NoiseSchedule.cosine(50), variance=variance))
    x = torch.randn(1, config.in_channels, *[config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    y = None if config.num_classes is None else torch.tensor([1])
    with torch.no_grad():
        expected = pipe.unet(x, torch.tensor([7]), y)
    loaded = pipe
    for target in ("openai", "fastdiff", "diffusers", "openai"):
        path = tmp_path / f"{target}{len(list(tmp_path.iterdir()))}{'.pt' if target == 'openai' else ''}"
        if target == "diffusers" and preset in ("iddpm-imagenet64", "adm-imagenet128", "adm-imagenet512"):
            with pytest.raises(ValueError, match="diffusers has no such network"):
                save_as(loaded, path, target)
            continue
        loaded = fd.Pipeline.from_pretrained(save_as(loaded, path, target))
        assert loaded.diffusion == pipe.diffusion
        with torch.no_grad():
            found = loaded.unet(x, torch.tensor([7]), y)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours, back = (
        convert.to_layout(ends.unet.state_dict(), ends.unet.config, "openai", qkv_layout="legacy")
        for ends in (pipe, loaded)
    )
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_save_as_openai_says_what_their_code_does_otherwise(tmp_path):
    unet = random_unet(ho())
    with pytest.warns(UserWarning, match=r"norm_eps is 1e-05 there, 1e-06 here; time_embedding"):
        save_as(fd.Pipeline(unet, LINEAR), tmp_path / "ho.pt", "openai")
    assert json.loads((tmp_path / "ho.pt.json").read_text())["flags"] is None
    unet = random_unet(tiny())
    save_as(fd.Pipeline(unet, LEARNED), tmp_path / "iddpm.pt", "openai")
    beside = json.loads((tmp_path / "iddpm.pt.json").read_text())
    (tmp_path / "iddpm.pt.json").unlink()
    again = fd.Pipeline.from_pretrained(tmp_path / "iddpm.pt", flags=beside["flags"])
    assert again.unet.config == unet.config
    assert again.diffusion == LEARNED


def test_save_as_openai_takes_a_process_of_few_steps(tmp_path):
    # Ho's linear schedule does not exist for so few.
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(10), variance="learned_range")
    save_as(fd.Pipeline(random_unet(tiny()), diffusion), tmp_path / "short.pt", "openai")
    assert json.loads((tmp_path / "short.pt.json").read_text())["flags"]["noise_schedule"] == "cosine"
    assert fd.Pipeline.from_pretrained(tmp_path / "short.pt").diffusion == diffusion


def test_save_as_refuses_other_targets_and_existing_paths(tmp_path):
    pipe = fd.Pipeline(random_unet(ho()), LINEAR)
    with pytest.raises(ValueError, match="did you mean 'diffusers'"):
        save_as(pipe, tmp_path / "x", "diffuser")
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        save_as(pipe, tmp_path / "x", "diffusers")
    with pytest.raises(ValueError, match=r"ends in \.pt"):
        save_as(pipe, tmp_path / "y", "openai")


def test_cli_convert_names_what_the_file_does_not_say(tmp_path):
    unet = random_unet(tiny())
    torch.save(openai_state(unet), tmp_path / "model.pt")
    run = CliRunner().invoke
    failed = run(app, ["convert", str(tmp_path / "model.pt"), str(tmp_path / "out")])
    assert failed.exit_code == 1
    assert "does not say" in failed.output
    options = ["--unet", "image_size=8", "--unet", "num_heads=2", "--unet", "qkv_layout=legacy"]
    options += [
        "--diffusion",
        "schedule=cosine",
        "--diffusion",
        "timesteps=50",
        "--diffusion",
        "variance=learned_range",
    ]
    done = run(app, ["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), "--to", "fastdiff", *options])
    assert done.exit_code == 0, done.output
    assert "not in the file: qkv_layout, from unet=" in done.output
    assert_same_network(fd.Pipeline.from_pretrained(tmp_path / "out"), unet)
    done = run(app, ["convert", str(tmp_path / "out"), str(tmp_path / "back.pt"), "--to", "openai"])
    assert done.exit_code == 0, done.output
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "back.pt"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_from_pretrained_of_a_hub_id_says_when_the_hub_is_out_of_reach(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        RuntimeError, match=r"'nobody/nothing' is not on this disk.*network is unreachable.*local folder"
    ):
        fd.Pipeline.from_pretrained("nobody/nothing")


def test_from_pretrained_of_a_hub_id_loads_what_the_hub_gives(monkeypatch, tmp_path):
    import huggingface_hub

    DDPMPipeline(diffusers_model(**SMALL), DDPMScheduler()).save_pretrained(tmp_path)
    asked = []

    def download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pipe = fd.Pipeline.from_pretrained("nobody/nothing")
    assert pipe.unet.config.channels == 8
    # Safetensors are there, so no pickle was asked for.
    assert asked == [("nobody/nothing", ["*.json", "*.safetensors"])]


def test_from_pretrained_of_its_own_models_takes_no_hints(tmp_path):
    pipe = fd.Pipeline(random_unet(ho()), LINEAR)
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="leave out preset"):
        fd.Pipeline.from_pretrained(tmp_path / "model", preset="ho-cifar10")
    with pytest.raises(ValueError, match="does not exist"):
        fd.Pipeline.from_pretrained(tmp_path / "nothing")
    save_file(
        {key: value.contiguous() for key, value in pipe.unet.state_dict().items()}, tmp_path / "loose.safetensors"
    )
    with pytest.raises(ValueError, match=r"loose\.safetensors is the weights of a fastdiff model: give its folder"):
        fd.Pipeline.from_pretrained(tmp_path / "loose.safetensors")
