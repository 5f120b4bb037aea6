"""The lucidrains drop-in's trainer: its steps, files and average, against theirs."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff as fd
from fastdiff.compat import lucidrains
from fastdiff.compat.lucidrains.trainer import _Folder
from support import peer_lucidrains
from support.tolerances import FLOAT32_DEEP, FLOAT32_RUN


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(100):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_trainer_trains_saves_and_goes_on(folder, tmp_path):
    def trainer(steps):
        torch.manual_seed(0)
        process = lucidrains.GaussianDiffusion(lucidrains.Unet(8, dim_mults=(1,)), image_size=8, timesteps=10)
        return lucidrains.Trainer(
            process,
            folder,
            train_num_steps=steps,
            save_and_sample_every=2,
            num_samples=4,
            calculate_fid=False,
            results_folder=tmp_path / "results",
        )

    first = trainer(4)
    before = {key: value.clone() for key, value in first.model.state_dict().items()}
    first.train()
    assert any(not torch.equal(value, before[key]) for key, value in first.model.state_dict().items())
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "model-1.pt",
        "model-2.pt",
        "sample-1.png",
        "sample-2.png",
    }
    again = trainer(4)
    again.load(2)
    assert again.step == 4
    for key, value in first.ema.state_dict().items():
        assert torch.equal(again.ema.state_dict()[key], value), key
    pipe = fd.Pipeline.from_pretrained(tmp_path / "results" / "model-2.pt", unet={"image_size": 8})
    assert pipe.metadata["weights"] == "ema"
    assert pipe.diffusion == first.model.diffusion
    assert pipe.sample(1, steps=2).shape == (1, 3, 8, 8)


def test_trainers_average_is_that_of_ema_pytorch():
    peer_lucidrains.load()
    from ema_pytorch import EMA

    from fastdiff.compat.lucidrains.trainer import _Average

    model = torch.nn.Linear(2, 2)
    theirs, ours = EMA(model, beta=0.995, update_every=10), _Average(model, 0.995, 10)
    for step in range(250):
        with torch.no_grad():
            model.weight.fill_(step)
        theirs.update()
        ours.update()
        torch.testing.assert_close(ours.ema_model.weight, theirs.ema_model.weight, rtol=FLOAT32_DEEP, atol=FLOAT32_RUN)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_trainer_refuses_what_theirs_refuses(folder, tmp_path):
    process = lucidrains.GaussianDiffusion(lucidrains.Unet(8, dim_mults=(1,)), image_size=8, timesteps=10)
    options = {"results_folder": tmp_path / "r", "calculate_fid": False}
    for change, said in (({"num_samples": 5}, "square root"), ({"train_batch_size": 8}, "at least 16")):
        with pytest.raises(ValueError, match=said):
            lucidrains.Trainer(process, folder, **options, **change)
    with pytest.raises(ValueError, match="at least 100 images"):
        lucidrains.Trainer(process, tmp_path / "none", **options)
    with pytest.warns(UserWarning, match="does not compute FID"):
        lucidrains.Trainer(process, folder, results_folder=tmp_path / "r")


def test_trainers_folder_refuses_what_it_would_read_wrongly(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    grey = Image.fromarray(ramp)
    grey.quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")

    def read(name, mode):
        data = _Folder(tmp_path, (8, 8), False, mode)
        return data[[path.name for path in data.paths].index(name)]

    np.testing.assert_allclose(read("palette.png", "RGB")[0] * 255, ramp, atol=16)  # A sixteenth of 256.
    with pytest.raises(ValueError, match=r"palette\.png: the values of mode 'P' are no colours: give convert_image_to"):
        read("palette.png", None)
    for mode in ("L", "RGB", None):
        with pytest.raises(ValueError, match=r"deep\.png: more than 8 bits per channel"):
            read("deep.png", mode)
        with pytest.raises(OSError, match="cannot identify"):
            read("text.png", mode)


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "RGB"), (4, "RGBA")])
def test_trainers_pictures_have_their_size_and_mode(channels, mode, folder, tmp_path):
    """Four images of 8x8 pixels in two rows, with lines of 2 pixels around each: 22x22, as torchvision writes them."""
    process = lucidrains.GaussianDiffusion(
        lucidrains.Unet(8, dim_mults=(1,), channels=channels), image_size=8, timesteps=10, sampling_timesteps=2
    )
    options = {"num_samples": 4, "calculate_fid": False, "results_folder": tmp_path / "r"}
    lucidrains.Trainer(process, folder, train_num_steps=1, save_and_sample_every=1, **options).train()
    with Image.open(tmp_path / "r" / "sample-1.png") as picture:
        assert (picture.mode, picture.size) == (mode, (22, 22))
        pixels = np.array(picture)
    # The lines are black, with alpha 0.
    assert not pixels[:2].any()
    assert not pixels[:, 10:12].any()
    assert (tmp_path / "r" / "model-1.pt").is_file()


def test_samples_are_rounded_into_their_places(tmp_path):
    from fastdiff.compat.lucidrains.trainer import _write_samples

    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 1, 1) / 4
    _write_samples(tmp_path / "grid.png", images, 2)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.array(picture)[..., 0]
    # (value * 255 + 1/2) cut to whole numbers.
    assert [int(pixels[y, x]) for y in (2, 5) for x in (2, 5)] == [0, 64, 128, 191]
    with pytest.raises(ValueError, match="cannot show 2 channels"):
        _write_samples(tmp_path / "two.png", torch.zeros(1, 2, 4, 4), 1)


def test_classes_that_are_not_here_are_named():
    with pytest.raises(ImportError, match=r"has no KarrasUnet: .* from denoising_diffusion_pytorch"):
        from fastdiff.compat.lucidrains import KarrasUnet  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = lucidrains.Nothing
