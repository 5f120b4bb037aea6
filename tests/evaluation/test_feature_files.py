"""Tests of fastdiff.evaluation.feature_files: networks of random weights in files of the forms that are read."""

import importlib
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from fastdiff.evaluation import feature_files, open_features
from support.tolerances import FLOAT32_DEEP

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))


class Plain(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).mean(dim=(2, 3))


class WithLogits(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = images.to(torch.float32).flatten(1)
        return flat[:, :5], flat[:, :3]


class AsNvidias(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        flat = images.to(torch.float32).flatten(1)
        return flat[:, :7] if return_features else flat[:, :3]


class Wrong(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def scripted(path, module):
    torch.jit.script(module).save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("module", "width", "classes"), [(Plain(), 3, False), (WithLogits(), 5, True), (AsNvidias(), 7, False)]
)
def test_a_torchscript_module_gives_features(tmp_path, module, width, classes):
    features = open_features(scripted(tmp_path / "module.pt", module), 3)
    found, logits = features.compute(IMAGES)
    assert found.shape == (2, width)
    assert features.has_classes is classes
    assert (logits is not None) is classes
    assert len(features.about["sha256"]) == 64


def test_a_module_that_gives_no_features_is_named(tmp_path):
    features = open_features(scripted(tmp_path / "wrong.pt", Wrong()), 3)
    with pytest.raises(ValueError, match=r"wrong\.pt must return features, floats \[n, D\], got torch.uint8"):
        features.compute(IMAGES)


@pytest.fixture(scope="module")
def extractor():
    try:
        return feature_files._fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def inception_file(extractor, tmp_path_factory):
    """Inception with random weights, as torch-fidelity keeps it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with mock.patch.object(torch, "load"), mock.patch.object(extractor, "load_state_dict"):
        network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys(extractor, inception_file):
    features = open_features(f"inception:{inception_file}", 3)
    peer = extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    found, logits = features.compute(IMAGES)
    wanted, wanted_logits = peer(IMAGES)
    assert features.has_classes
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, wanted, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)
    torch.testing.assert_close(logits, wanted_logits, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)
    grey = features.compute(IMAGES[:, :1])[0]
    torch.testing.assert_close(grey, peer(IMAGES[:, :1].expand(-1, 3, -1, -1))[0], rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)
    with pytest.raises(ValueError, match="1 or 3 channels, and these have 4"):
        features.compute(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_inception_runs_no_code_of_its_file(extractor, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"weight": Plain()}, path)
    with pytest.raises(ValueError, match=r"evil\.pth holds no weights of torch-fidelity's Inception"):
        open_features(f"inception:{path}", 3)


def test_dinov2_is_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra [dinov2] is not installed")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dino")
    features = open_features(f"dinov2:{tmp_path / 'dino'}", 3)
    found, logits = features.compute(IMAGES)
    assert logits is None
    assert found.shape == (2, 24)
    # Of one colour, nothing is resized.
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = network((torch.ones(1, 3, 224, 224) - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(features.compute(white)[0], wanted, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inception:", "there is no file named; Inception needs torch-fidelity's weights-inception"),
        ("inception:{}/missing.pth", r"there is no file .*missing\.pth; Inception needs"),
        ("inception:{}/text.pt", r"text\.pt holds no weights of torch-fidelity's Inception"),
        ("dinov2:{}/missing", "DINOv2 needs a folder with config.json and model.safetensors"),
        ("dinov2:{}", "has not both"),
        ("{}/missing.pt", r"there is no file .*missing\.pt; give the path of a TorchScript module"),
        ("{}/text.pt", r"text\.pt is no TorchScript module"),
    ],
)
def test_a_file_that_is_missing_or_another_is_named(tmp_path, extractor, text, said):
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(ValueError, match=said):
        open_features(text.format(tmp_path), 3)


@pytest.mark.parametrize(("name", "extra"), [("inception", "fidelity"), ("dinov2", "dinov2")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, extra):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).touch()
    for module in [key for key in sys.modules if key.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RuntimeError, match=rf"fastdiff-ddpm\[{extra}\]"):
        open_features(f"{name}:{tmp_path}", 3)
