"""Runs the tests of the launches and the loop under Triton's interpreter."""

import pytest

from support.interpreter_runs import files_in, passes_under_the_interpreter

FOLDER = "tests/engine/cuda/interpreter"


@pytest.mark.slow
@pytest.mark.parametrize("file", files_in(FOLDER))
def test_launches_pass_their_tests_under_the_interpreter(file):
    passes_under_the_interpreter(f"{FOLDER}/{file}", least=2)
