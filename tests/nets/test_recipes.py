"""The published recipes: one for each preset, and what they build."""

from fastdiff.nets.config import PRESETS
from fastdiff.nets.recipes import RECIPES, build_diffusion


def test_recipes_belong_to_presets():
    assert set(RECIPES) == set(PRESETS)
    for recipe in RECIPES.values():
        build_diffusion(recipe["diffusion"])
