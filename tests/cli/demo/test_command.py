"""`fastdiff demo`: it names what there is."""

from support.command_line import fails


def test_unknown_demo():
    assert "unknown demo 'digit': did you mean 'digits'?" in fails("demo", "digit")


def test_demo_names_what_there_is():
    assert "did you mean 'swiss-roll'" in fails("demo", "swissroll")
