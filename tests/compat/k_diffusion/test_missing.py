"""What k-diffusion has and the drop-in does not says what to do."""

import pytest

from fastdiff.compat import k_diffusion as k


@pytest.mark.parametrize(
    ("place", "name", "word"),
    [
        (k, "models", "give one to Denoiser"),
        (k, "augmentation", "k_diffusion"),
        (k.config, "make_model", "from k_diffusion import config"),
        (k.config, "load_config", "from k_diffusion import config"),
        (k.evaluation, "InceptionV3FeatureExtractor", "compute_features"),
        (k.sampling, "DPMSolver", "sample_dpm_fast"),
        (k.utils, "FolderOfImages", r"fastdiff\.data"),
    ],
)
def test_missing_names_say_what_to_do(place, name, word):
    with pytest.raises(ImportError, match=f"has no {name}.*{word}.*migration"):
        getattr(place, name)


def test_missing_names_of_nobody_are_attribute_errors():
    for place in (k, k.config, k.evaluation, k.layers, k.sampling, k.utils):
        assert not hasattr(place, "no_such_name")
