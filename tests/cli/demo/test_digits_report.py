"""The digits' report: which samples are shown, and the numbers of the table."""

import io

from rich.console import Console

from fastdiff.cli.demo import digits_report


def test_one_sample_of_each_digit_is_shown_in_their_order():
    names = [(3, 0.9), (1, 0.95), (3, 0.99), (0, 0.85), (7, 0.5)]
    names += [(digit, 0.9) for digit in (2, 4, 5, 6, 7, 8, 9)]
    shown = digits_report._one_of_each(names)
    assert [names[i][0] for i in shown] == list(range(10))
    # The first that is recognised: 7 of 0.5 is not.
    assert shown[3] == 0
    assert shown[7] == 9


def test_where_a_digit_is_missing_others_are_shown():
    names = [(1, 0.9), (1, 0.9), (2, 0.3), (1, 0.9)]
    assert digits_report._one_of_each(names) == [0, 1, 2, 3]
    assert digits_report._one_of_each([(1, 0.2)] * 30) == list(range(10))


def result():
    shares = {"samples": {"shares": [0.05, 0.2], "recognised": 0.9}, "scrambled": {"recognised": 0.01}}
    shares["held_out"] = {"shares": [0.08, 0.12], "recognised": 0.99, "accuracy": 0.987}
    return {
        "likelihood": {
            "bits_per_dim": 1.2345, "standard_error": 0.011, "independent_pixels_bits_per_dim": 2.5, "kl": 1.0,
            "uniform_bits_per_dim": 4.087, "decoder": 0.2344, "prior": 1e-4,
        },
        "classifier": shares,
        "strict_classifier": shares,
        "frechet_distance": {"samples": 0.5, "held_out": 0.25, "as_many_samples_as_held_out": 0.75},
        "evaluation": {
            "samples": {"precision": 0.815, "coverage": 0.915}, "held_out": {"precision": 0.925, "coverage": 0.545},
        },
        "copies": {
            "median_samples": 3.0, "closest_sample": 1.5, "median_held_out": 3.2, "closest_held_out": 1.25,
            "exact_copies": 0,
        },
        "training": {"images_per_second": 12345.6, "seconds": 61},
        "sampling": {"images_per_second": 321.0, "steps": 50},
        "total_seconds": 3723,
        "peak_memory_bytes": 512 * 2**20,
    }  # fmt: skip


def test_report_prints_every_number_and_every_file(tmp_path):
    console = Console(record=True, width=140, file=io.StringIO())
    digits_report.report(console, tmp_path, result())
    text = console.export_text()
    for expected in (
        "1.234 ± 0.011", "independent pixels 2.500", "uniform guess 4.087", "0.234, 1.0e-04", "90.0%", "99.0%",
        "scrambled digits 1.0%", "5.0% to 20.0%", "8.0% to 12.0%", "as many samples 0.750", "3.00, least 1.50",
        "copies 0", "12,346 images/s", "1:01", "50 steps each", "1:02:03", "512 MiB of memory", "98.7%",
        "81.5%", "91.5%", "92.5%", "54.5%",
    ):  # fmt: skip
        assert expected in text, expected
    for name, what in digits_report.WRITTEN:
        assert f"{tmp_path / name}  {what}" in text
    assert f"fastdiff sample {tmp_path} --num 64" in text
