"""Wrong types at every place of every JSON that is read give a sentence that names the file."""

import copy
import json

import pytest

import fastdiff as fd
from fastdiff.convert.save import save_as
from support.converted_networks import tiny
from support.networks import random_unet

WRONG = [None, True, -1, 0, 1.5, 10**400, 10**12, float("inf"), "", "x", [], {}, [1], ["x"], {"a": 1}, [[[1]]]]
FILES = {
    "fastdiff": ["config.json"],
    "openai": ["model.pt.json"],
    "diffusers": ["unet/config.json", "scheduler/scheduler_config.json"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    # diffusers has no scale and shift with a norm in the middle only, and one head.
    config = tiny(out_channels=3, channel_mult=(1,), attention_resolutions=(), num_heads=1)
    pipe = fd.Pipeline(random_unet(config), fd.Diffusion(fd.NoiseSchedule.cosine(3), variance="fixed_large"))
    paths = {}
    for target in FILES:
        paths[target] = save_as(pipe, root / target / ("model.pt" if target == "openai" else "model"), target)
    return paths


def places(content, path=()):
    """Every key of a JSON, and one entry of every list, by the way there."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(content, list) and content:
        yield (*path, 0)
        yield from places(content[0], (*path, 0))


def changed(content, place, value):
    new = copy.deepcopy(content)
    inner = new
    for key in place[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return new


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in FILES.items() for name in names])
def test_a_wrong_type_anywhere_gives_a_sentence(models, target, name):
    path = models[target]
    file = path.with_name(name) if target == "openai" else path / name
    whole = file.read_text()
    content = json.loads(whole)
    num_refused = 0
    try:
        for place in places(content):
            for value in [*WRONG, KeyError]:
                file.write_text(json.dumps(changed(content, place, value)))
                said = ""
                try:
                    assert len(fd.Pipeline.from_pretrained(path).image_shape) == 3
                except ValueError as error:
                    said = str(error)
                    num_refused += 1
                except Exception as error:
                    raise AssertionError(f"{place} = {value!r}: {error!r}") from error
                assert not said or str(path) in said, (place, value)
        for value in WRONG:
            file.write_text(json.dumps(value))
            if isinstance(value, dict):
                continue
            with pytest.raises(
                ValueError, match=r"must hold a JSON object|was not written by fastdiff|is not a fastdiff"
            ):
                fd.Pipeline.from_pretrained(path)
    finally:
        file.write_text(whole)
    fd.Pipeline.from_pretrained(path)
    assert num_refused > 20


def test_a_number_too_large_to_build_is_refused_before_there_is_room(models):
    file = models["fastdiff"] / "config.json"
    whole = file.read_text()
    try:
        for key, value in (("channels", 2**20), ("num_res_blocks", 10**8), ("channel_mult", [1] * 10**4)):
            content = json.loads(whole)
            content["unet"][key] = value
            file.write_text(json.dumps(content))
            with pytest.raises(ValueError, match="config"):
                fd.Pipeline.from_pretrained(models["fastdiff"])
    finally:
        file.write_text(whole)


def test_json_nested_without_end_is_refused(models):
    file = models["diffusers"] / "unet" / "config.json"
    whole = file.read_text()
    file.write_text("[" * 100_000)
    try:
        with pytest.raises(ValueError, match="is not JSON"):
            fd.Pipeline.from_pretrained(models["diffusers"])
    finally:
        file.write_text(whole)
