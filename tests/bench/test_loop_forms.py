"""The timing of the loop's forms, over a CUDA runtime without a GPU."""

import loop_forms

from fastdiff.engine.cuda.library import ROW
from support import fake_cuda


def test_every_form_runs_the_rows_and_is_timed():
    runtime = fake_cuda.runtime()
    runtime.reset()
    control, seen = fake_cuda.control_block(), []
    step = runtime.capture(lambda: seen.append(int(control[ROW])))
    network = runtime.capture(lambda: None)
    evaluates = [True, False, True]
    table = fake_cuda.rows_that(evaluates)

    def build(mode):
        return runtime.loop(
            step,
            network=network,
            control=control.data_ptr(),
            rows=table.data_ptr(),
            mode=mode,
            unroll=range(3) if mode == "unrolled" else None,
            evaluates=evaluates if mode == "unrolled" else None,
        )

    found = loop_forms.measure(build, evaluates, repeats=4)
    live = runtime.live()
    runtime.reset()
    assert live == {}
    assert list(found) == ["while", "replay", "unrolled"]
    assert seen == [0, 1, 2] * 3 * 5
    for form in found.values():
        assert 0 < form.least <= form.row <= form.most
    text = loop_forms.to_markdown({"3 kernels": found})
    assert text.count("\n") == 4
    assert "| 3 kernels | replay | " in text
