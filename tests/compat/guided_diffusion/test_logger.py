"""OpenAI's logger: what it writes, and where."""

import csv

import pytest

from fastdiff.compat.guided_diffusion import logger


@pytest.fixture(autouse=True)
def folder(tmp_path):
    logger.configure(dir=str(tmp_path / "log"))
    yield tmp_path / "log"
    logger.reset()


def test_rows_hold_last_values_and_means_and_grow_columns(folder):
    logger.logkv("step", 1)
    logger.logkv("step", 2)
    for value in (1.0, 2.0, 6.0):
        logger.logkv_mean("loss", value)
    assert logger.getkvs() == {"step": 2, "loss": 3.0}
    assert logger.dumpkvs() == {"step": 2, "loss": 3.0}
    assert logger.getkvs() == {}
    logger.logkvs({"step": 3, "extra": "text"})
    logger.dump_tabular()
    rows = list(csv.DictReader((folder / "progress.csv").open()))
    assert rows == [{"extra": "", "loss": "3.0", "step": "2"}, {"extra": "text", "loss": "", "step": "3"}]


def test_messages_go_to_the_file_from_their_level_on(folder, capsys):
    logger.log("a", 1)
    logger.debug("not seen")
    logger.set_level(logger.WARN)
    logger.info("not seen")
    logger.warn("b")
    logger.error("c")
    assert (folder / "log.txt").read_text().splitlines() == [f"Logging to {folder}", "a 1", "b", "c"]
    assert "not seen" not in capsys.readouterr().out


def test_scoped_configure_writes_elsewhere_for_a_while(folder, tmp_path):
    with logger.scoped_configure(dir=str(tmp_path / "inner")):
        assert logger.get_dir() == str(tmp_path / "inner")
        logger.record_tabular("x", 1)
    assert logger.get_dir() == str(folder)
    assert "x" not in logger.getkvs()
    logger.reset()
    assert logger.get_dir() is None


def test_profile_adds_up_the_seconds_of_calls():
    @logger.profile("work")
    def double(x):
        """Twice a number."""
        return 2 * x

    assert double(2) == 4
    first = logger.getkvs()["wait_work"]
    double(3)
    assert logger.getkvs()["wait_work"] > first > 0
    assert double.__doc__ == "Twice a number."
    logger.set_comm(None)
