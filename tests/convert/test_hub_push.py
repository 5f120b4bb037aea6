"""Models pushed to a hub and fetched from it: a fake one on loopback, asked by huggingface_hub itself."""

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants

import fastdiff as fd
from support.command_line import small_model
from support.fake_hub import READER, TOKEN, served


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path) as fake:
        yield fake


@pytest.fixture
def pipe(tmp_path):
    return fd.Pipeline.from_pretrained(small_model(tmp_path / "model", size=8, channels=1))


def card_of(hub, name="me/digits"):
    text = hub.files(name)["README.md"].decode()
    _, fields, body = text.split("---\n", 2)
    return yaml.safe_load(fields), body


def test_what_is_pushed_is_fetched(hub, pipe):
    where = pipe.push_to_hub("me/digits", token=TOKEN, license="mit", pictures=2, steps=2)
    assert where == f"{hub.endpoint}/me/digits"
    # Safetensors and JSON alone, all in one commit.
    assert sorted(hub.files("me/digits")) == ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert hub.commits["me/digits"] == [f"A model of fastdiff {fd.__version__}"]
    again = fd.Pipeline.from_pretrained("hf://me/digits")
    assert torch.equal(again.sample(2, steps=2), pipe.sample(2, steps=2))
    assert again.diffusion == pipe.diffusion
    # Neither the card nor the picture is fetched.
    assert not any(path.endswith((".png", ".md")) for path in hub.asked if path.startswith("GET"))
    fields, _ = card_of(hub)
    assert (fields["license"], fields["library_name"]) == ("mit", "fastdiff")


def test_a_revision_is_fetched_and_a_wrong_one_named(hub, pipe):
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0)
    commit = hub.commit_of("me/digits")
    assert fd.Pipeline.from_pretrained(f"hf://me/digits@{commit}").unet.config == pipe.unet.config
    with pytest.raises(ValueError, match=r"'me/digits' on the hub has no such revision"):
        fd.Pipeline.from_pretrained("hf://me/digits@v9")


def test_a_fetched_model_is_there_without_a_network(hub, pipe, monkeypatch):
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0)
    fd.Pipeline.from_pretrained("hf://me/digits")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fd.Pipeline.from_pretrained("hf://me/digits").unet.config == pipe.unet.config


def test_a_private_model_needs_a_token(hub, pipe):
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0, private=True)
    with pytest.raises(ValueError, match="'me/digits' is neither on this disk nor on the hub, or it is private"):
        fd.Pipeline.from_pretrained("hf://me/digits")


def test_a_card_may_be_kept(hub, pipe):
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0)
    hub.files("me/digits")["README.md"] = b"my own words"
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0, keep_card=True)
    assert hub.files("me/digits")["README.md"] == b"my own words"
    pipe.push_to_hub("me/digits", token=TOKEN, pictures=0)
    assert card_of(hub)[0]["library_name"] == "fastdiff"


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "'me/digits' needs a token that may write, and there is none: `hf auth login`, or set HF_TOKEN"),
        (READER, "the hub refused the token, 403.*: give one that may write"),
        ("hf_wrong", "the hub refused the token, 401.*: give one that may write"),
    ],
    ids=["none", "reader", "wrong"],
)
def test_a_push_without_the_right_token_says_so(hub, pipe, token, said):
    with pytest.raises(RuntimeError, match=said):
        pipe.push_to_hub("me/digits", token=token, pictures=0)
    assert not hub.models


def test_a_hub_out_of_reach_is_named(hub, pipe, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(RuntimeError, match=r"'me/digits' cannot be pushed \(network is unreachable\): see that"):
        pipe.push_to_hub("me/digits", token=TOKEN, pictures=0)


@pytest.mark.parametrize("name", ["digits", "me/", "me/digits/more", "../me", "me/digits@main", ""])
def test_a_name_without_an_owner_is_refused(hub, pipe, name):
    with pytest.raises(ValueError, match="a model on the hub is named owner/name, got"):
        pipe.push_to_hub(name, token=TOKEN)
    assert not hub.asked


def test_a_network_of_another_project_is_refused(hub, pipe):
    from fastdiff.nets.lucidrains import Unet

    other = fd.Pipeline(Unet(dim=8, dim_mults=(1, 2), channels=1), pipe.diffusion)
    with pytest.raises(ValueError, match="an architecture of its own"):
        other.push_to_hub("me/digits", token=TOKEN)
    assert not hub.asked


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no weights that are read here"),
        ({"config.json": b"{}", "README.md": b"-"}, "holds no weights that are read here"),
        ({"config.json": b"{}", "model.pkl": b"\x80\x04N."}, "a pickle of another kind is not fetched"),
    ],
    ids=["empty", "no weights", "pickle"],
)
def test_a_model_without_our_files_says_so(hub, files, said):
    hub.models["me/other"] = {"files": files, "private": False}
    with pytest.raises(ValueError, match=f"'me/other' on the hub {said}|'me/other' on the hub .*{said}"):
        fd.Pipeline.from_pretrained("hf://me/other")
    assert not any("resolve" in asked and asked.endswith(".pkl") for asked in hub.asked)
