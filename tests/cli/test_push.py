"""`fastdiff push`, to a hub on loopback."""

import pytest

from support.command_line import fails, small_model, works
from support.fake_hub import TOKEN, served


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path) as fake:
        yield fake


def test_the_command_pushes(hub, tmp_path, monkeypatch):
    model = small_model(tmp_path / "model", size=8, channels=1, num_classes=3)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = works("push", model, "me/classes", "--license", "cc-by-4.0", "--pictures", 3, "--steps", 2, "--private")
    assert f"{hub.endpoint}/me/classes; next: fastdiff sample hf://me/classes" in told
    assert hub.models["me/classes"]["private"]
    assert "labels=[0] * 16" in hub.files("me/classes")["README.md"].decode()
    told = works("info", "model", "hf://me/classes")
    assert "NoiseSchedule" in told


def test_the_command_names_what_is_missing(hub, tmp_path):
    model = small_model(tmp_path / "model", size=8, channels=1)
    assert "needs a token that may write" in fails("push", model, "me/digits", "--pictures", 0)
    assert "is named owner/name" in fails("push", model, "digits")
