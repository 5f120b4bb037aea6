"""`fastdiff export`: what the program without Python samples from the file is what the model samples."""

import numpy as np
import pytest

import fastdiff as fd
from fastdiff import ops
from support import standalone
from support.command_line import run

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")


@pytest.mark.parametrize(
    "options", [(), ("--size", "16x32"), ("--precision", "strict"), ("--memory", "low")], ids=" ".join
)
def test_export_samples_what_the_model_samples(options, model, tmp_path):
    file = tmp_path / "model.fd"
    done = run("export", model, file, "--sampler", "ddim", "--steps", 3, "--option", "eta=0.5", *options)
    assert done.exit_code == 0, done.output
    assert f"{file.stat().st_size:,} bytes: {file}; next: fastdiff-run {file} --out samples.png" in done.stdout
    pipe = fd.Pipeline.from_pretrained(model)
    network = fd.compile(
        pipe.unet,
        precision="strict" if "strict" in options else "fast",
        memory="low" if "low" in options else "normal",
    )
    shape = (3, 16, 32) if "16x32" in options else pipe.image_shape
    table = fd.samplers.ddim(pipe.diffusion, 3, eta=0.5)
    expected = fd.sample(network, table, shape=(4, *shape), seed=2, progress=False)
    assert standalone.same_bits(standalone.images_of(file, tmp_path, "--num", 4, "--seed", 2), expected)


def test_export_of_a_network_with_classes_takes_them_in_turn(labelled_model, tmp_path):
    file = tmp_path / "model.fd"
    assert run("export", labelled_model, file, "--steps", 3).exit_code == 0
    done = run("sample", labelled_model, "--num", 4, "--steps", 3, "--out", tmp_path / "expected.npy")
    assert done.exit_code == 0, done.output
    found = standalone.images_of(file, tmp_path, "--num", 4)
    assert np.array_equal(found, np.load(tmp_path / "expected.npy"))
    said = standalone.ran(file, "--info").stdout
    assert "3 classes" in said
    assert "sampler: CoefficientTable('ddim'" in said


def test_export_refuses_a_model_that_makes_images_of_images(upscaler, tmp_path):
    done = run("export", upscaler, tmp_path / "model.fd", "--steps", 3)
    assert done.exit_code == 1
    assert "an exported model gives it the noisy image alone" in done.output
    assert not list(tmp_path.iterdir())


def test_export_replaces_a_file_only_where_it_may(model, tmp_path):
    file = tmp_path / "model.fd"
    file.write_text("mine")
    done = run("export", model, file, "--steps", 3)
    assert (done.exit_code, file.read_text()) == (2, "mine")
    assert "--overwrite" in done.output
    assert run("export", model, file, "--steps", 3, "--overwrite").exit_code == 0
    assert run("export", model, tmp_path, "--steps", 3).exit_code == 1
