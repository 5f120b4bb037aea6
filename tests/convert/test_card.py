"""What a model card says: what the checkpoint and the reports say, and nothing else."""

import json

import pytest
import yaml

import fastdiff as fd
from fastdiff.convert.card import check_license, model_card, read_figures
from support.command_line import small_model

EVALUATION = {
    "reference": {"source": "held-out | images", "num": 360},
    "features": {"name": "pixels"},
    "sets": [{"num": 1000, "values": {"fid": 0.25, "precision": 0.9, "kid": None}}],
}
COMPARISON = {
    "recommended": [
        {"budget": 10, "name": "unipc", "evaluations": 10, "distance": 0.5},
        {"budget": 50, "name": "dpmpp_3m", "evaluations": 25, "distance": 0.3},
    ]
}


@pytest.fixture
def pipe(tmp_path):
    return fd.Pipeline.from_pretrained(small_model(tmp_path / "model", size=8, channels=1))


def card(pipe, **options):
    text = model_card(pipe, "me/digits", image_shape=(1, 8, 8), **options)
    _, fields, body = text.split("---\n", 2)
    return yaml.safe_load(fields), body


def test_card_tells_of_data_and_training(pipe):
    pipe.metadata["data"] = {"source": "digits/train", "num_images": 1437, "shape": [1, 8, 8], "sha256": "abc"}
    pipe.metadata["training"] = {"steps": 1500, "batch_size": 128, "loss": "hybrid", "trackers": ["tensorboard"]}
    pipe.metadata |= {"step": 1500, "weights": "ema"}
    _, body = card(pipe)
    for line in ("| source | digits/train |", "| images | 1,437 |", "| steps taken | 1,500 |", "| loss | hybrid |"):
        assert line in body
    assert "trackers" not in body
    assert "an average of the training" in body


def test_card_does_not_tell_where_on_a_disk_the_data_were(pipe):
    pipe.metadata["data"] = {"source": "/home/somebody/faces", "num_images": 3}
    _, body = card(pipe)
    assert "| source | faces |" in body
    assert "somebody" not in body


def test_card_says_what_it_does_not_know(pipe):
    fields, body = card(pipe)
    assert "does not say what the model was trained on" in body
    assert "does not say how the model was trained" in body
    assert "Nothing was measured on this model" in body
    assert "The owner has said nothing of a licence" in body
    assert "license" not in fields
    assert "model-index" not in fields
    assert "samples.png)" not in body
    assert "None" not in body


def test_card_repeats_figures(pipe):
    fields, body = card(pipe, figures={"evaluation.json": EVALUATION, "comparison.json": COMPARISON})
    (model,) = fields["model-index"]
    (result,) = model["results"]
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("fid", 0.25)]
    assert "1,000 samples against held-out \\| images; features: pixels" in body
    assert "| Fréchet distance | 0.25 |" in body
    assert "| 50 | dpmpp_3m | 25 | 0.3 |" in body
    # What is shown to be typed is the best of those that are recommended.
    assert 'sampler="dpmpp_3m", steps=25' in body


def test_snippet_of_the_card_is_python(pipe):
    pipe.metadata["training"] = {"label_dropout": 0.1}
    _, body = card(pipe, pictures="Samples.")
    snippet = body.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert "![samples](samples.png)\n\nSamples." in body


def test_figures_are_read_from_folders_and_files(tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert read_figures([tmp_path]) == {"evaluation.json": EVALUATION, "comparison.json": COMPARISON}
    assert read_figures([tmp_path / "evaluation.json"]) == {"evaluation.json": EVALUATION}
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match="is no report of fastdiff"):
        read_figures([tmp_path])
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_figures([tmp_path])
    with pytest.raises(ValueError, match=r"no evaluation\.json and no comparison\.json"):
        read_figures([tmp_path / "nothing"])


def test_licences_are_identifiers():
    assert check_license("cc-by-4.0") == "cc-by-4.0"
    assert check_license(None) is None
    for wrong in ("MIT License", "", "MIT", "-"):
        with pytest.raises(ValueError, match="license must be an identifier of the hub"):
            check_license(wrong)
