"""Packed weights and code: the layout that the executor reads."""

import re
from pathlib import Path

from fastdiff.engine.pack import CODE_FIELDS


def test_code_layout_is_that_of_the_executor():
    header = (Path(__file__).parents[2] / "csrc" / "include" / "plan_layout.h").read_text()
    struct = re.search(r"struct Instruction \{(.*?)\};", header, re.DOTALL)[1]
    fields = [name.strip() for line in re.findall(r"int64_t ([^;]*);", struct) for name in line.split(",")]
    assert tuple(fields) == CODE_FIELDS
