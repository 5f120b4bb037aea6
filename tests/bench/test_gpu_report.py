"""bench/gpu_report.py: what a reader of a run's records is shown."""

import gpu_report


def records(*rows, **end):
    ended = {"ended": "smoke", "status": "done: 1 passed", "seconds": 1.0, "limit": 15.0} | end
    return [{"machine": {"device": "A card"}}, *({"section": "smoke", **row} for row in rows), ended]


def test_row_shows_times_least_ratios_and_notes():
    row = {
        "name": "step", "gate": "passed", "dtype": "bfloat16", "us": {"fastdiff": 12.346, "torch": 1234.6},
        "least_us": {"fastdiff": 12.0}, "cpu_us": {"fastdiff": 20.0}, "times_faster_than": {"torch": 100.0},
        "fraction_of_floor": 0.5, "gigabytes_per_second": 3000.4, "note": "a | b\nc", "parts_us": {"forward": 3.0},
    }  # fmt: skip
    text = gpu_report.to_markdown(records(row))
    assert "fastdiff 12.35 (12.00), torch 1235 |" in text
    for part in ("| torch 100.00x |", "| 3000 |", "| 50% |", "a \\| b; forward 3.00", "| fastdiff 20.00 |"):
        assert part in text
    assert text.startswith("# A card\n")


def test_failed_gate_says_how_far_off():
    row = {"name": "step", "gate": "failed", "errors": {"fastdiff": 0.25, "fastdiff other": "inf"}, "limit": 0.03}
    assert "off by fastdiff 0.25, fastdiff other inf, allowed 0.03" in gpu_report.to_markdown(records(row))


def test_tests_are_counted_and_those_that_failed_named():
    rows = [{"name": f"test_{i}", "kind": "test", "gate": "passed"} for i in range(50)]
    rows += [{"name": "test_bad", "kind": "test", "gate": "failed", "reason": "off by one"}]
    rows += [{"name": f"test_skip{i}", "kind": "test", "gate": "not run", "reason": "no card"} for i in range(3)]
    text = gpu_report.to_markdown(records(*rows))
    assert "50 passed, 1 failed, 3 not run." in text
    assert "- test_bad: off by one" in text
    assert "- 3 not run: no card" in text
    assert "test_7" not in text
    assert "Not as it should be: smoke." in text


def test_row_of_another_form_costs_no_other_section():
    strange = {"section": "loop", "name": "x", "gate": "passed", "us": {"fastdiff": "fast"}}
    text = gpu_report.to_markdown(
        [*records({"name": "step", "gate": "passed"}), strange, {"section": "loop", "gate": 3}]
    )
    assert "| step |" in text
    assert "## loop\n\nCannot be shown" in text


def test_clocks_and_limits_are_in_the_overview():
    end = {"clocks": {"clocks.sm": [345.0, 1980.0], "power.draw": [100.0, 690.0]}}
    text = gpu_report.to_markdown(records({"name": "step", "gate": "passed"}, **end))
    assert "| smoke | done: 1 passed | 1 passed | 1.0 | 15 | 345-1980, 100-690 |" in text
