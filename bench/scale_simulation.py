"""How far `fastdiff generate` goes: jobs of 10^6 to 10^9 images on up to 4,096 workers, on a virtual clock.

`python bench/scale_simulation.py` prints the tables of docs/scale.md, `--json PATH` writes them too; `--quick` is for
the test. What a worker does for a part is what fastdiff/generation does, request by request:
tests/bench/test_scale_simulation.py counts them in the real code and holds `Requests` to it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Requests:
    """Opens, renames, removals and listings that fastdiff/generation makes: each a request to a mounted store.

    Attributes:
        start: Of a worker that starts: the manifest and two folders; what a long listing takes comes on top.
        look: At a part that is its own: its lock, and its record.
        verify: Of a part that is done: its file, read for the checksum.
        make: Of a part that is made: the file and its record written under other names, synced and renamed, old ones
            removed, and the file read back for its checksum.
        record: Of a part whose record is read and whose file is looked for, where that is not left to a listing.
        listed: Names that one request of a listing gives.
    """

    start: int = 3
    look: int = 2
    verify: int = 1
    make: int = 15
    record: int = 2
    listed: int = 1000


@dataclass(frozen=True)
class Setting:
    """A job and what it runs on. Rates are of one worker where nothing else is said.

    Attributes:
        images: Of the job.
        workers: That share it.
        part_size: Images of a part.
        images_per_second: That a worker samples.
        image_bytes: Of an image in a part; 32x32 in colour.
        record_bytes: Of a part's record.
        start_seconds: To start Python, load the model and pack its weights.
        failures_per_day: Workers that are killed, and start again at once.
        preemptions_per_day: Workers that are taken away, and come back after `preempted_seconds`.
        preempted_seconds: See above.
        slow_share: Of the workers that are slow.
        slow_factor: How much longer those take.
        latency: Seconds of one request.
        store_requests: Of all workers together, in a second: about what one prefix of an object store gives.
        worker_bytes: In a second.
        store_bytes: Of all workers together, in a second.
        sharing: "static", part k is worker k mod n's; "queue", whoever is free takes the next part.
        verify: A worker that starts again reads its finished parts, as fastdiff does.
        count: How a worker that ends counts the parts of the whole job: by a listing, as the command does, or by
            their "records".
        seed: Of what is drawn.
    """

    images: int
    workers: int
    part_size: int = 512
    images_per_second: float = 50.0
    image_bytes: int = 3072
    record_bytes: int = 300
    start_seconds: float = 30.0
    failures_per_day: float = 0.1
    preemptions_per_day: float = 1.0
    preempted_seconds: float = 300.0
    slow_share: float = 0.01
    slow_factor: float = 3.0
    latency: float = 0.03
    store_requests: float = 3500.0
    worker_bytes: float = 2e8
    store_bytes: float = 1e10
    sharing: Literal["static", "queue"] = "static"
    verify: bool = True
    count: Literal["listing", "records"] = "listing"
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        seconds: Until the last worker has made its last part.
        ideal_seconds: Without failures, stragglers and a store.
        wasted_share: Of the workers' time until then: work that was lost, starts, parts read again.
        idle_share: Of the same time: workers that had nothing left to do, or were taken away.
        store_share: Of the same time: waiting for the store.
        count_seconds: Until all workers have then counted the parts of the job.
        requests: To the store, in all.
        files: In the job's folder at the end.
        list_seconds: Of one listing of it.
        lost_parts: That were begun and lost.
    """

    seconds: float
    ideal_seconds: float
    wasted_share: float
    idle_share: float
    store_share: float
    count_seconds: float
    requests: float
    files: int
    list_seconds: float
    lost_parts: int


class Store:
    """An object store that serves all workers in the order in which they come."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.free = 0.0
        self.requests = 0.0

    def done(self, now: float, requests: float, num_bytes: float = 0.0) -> float:
        """When one worker's requests, one after the other, and their bytes are through."""
        s = self.setting
        self.requests += requests
        began = max(now, self.free)
        self.free = began + max(requests / s.store_requests, num_bytes / s.store_bytes)
        return max(self.free, began + requests * s.latency + num_bytes / s.worker_bytes)


def simulate(setting: Setting, requests: Requests | None = None) -> Outcome:
    """Run a job on a virtual clock, a part at a time.

    Args:
        setting: The job.
        requests: What a part costs; fastdiff's when None.
    """
    s, r = setting, requests or Requests()
    rng = np.random.default_rng(s.seed)
    parts = -(-s.images // s.part_size)
    store = Store(s)
    slow = rng.permutation(s.workers) < round(s.slow_share * s.workers)
    seconds_of_part = (np.where(slow, s.slow_factor, 1.0) * s.part_size / s.images_per_second).tolist()
    rate = (s.failures_per_day + s.preemptions_per_day) / DAY
    preempted = s.preemptions_per_day / max(s.failures_per_day + s.preemptions_per_day, 1e-300)
    listing = math.ceil(2 * parts / r.listed)
    part_bytes = s.part_size * s.image_bytes
    made = [0] * s.workers
    ends = [0.0] * s.workers
    wasted = waited = away = 0.0
    lost = taken = finished = 0
    draws: list[float] = []
    # When, which worker, and whether it starts (else it has sampled a part). The store is asked in this order.
    heap = [(s.start_seconds, worker, True) for worker in range(s.workers)]
    wasted += s.start_seconds * s.workers
    while heap:
        now, worker, starts = heapq.heappop(heap)
        if starts:
            # A listing is as long as what is there; a worker that comes again reads what it finished.
            again = made[worker] if s.verify and s.sharing == "static" else 0
            asked = r.start + math.ceil(2 * finished / r.listed) + again * (r.look + r.verify)
            ready = store.done(now, asked + r.look, again * part_bytes)
            wasted += ready - now
        else:
            # Written, and read back for its checksum; and the next one is looked at.
            ready = store.done(now, r.make + r.look, 2 * part_bytes + s.record_bytes)
            waited += ready - now
            made[worker] += 1
            finished += 1
        mine = worker + made[worker] * s.workers if s.sharing == "static" else taken
        if mine >= parts:
            ends[worker] = ready
            continue
        taken += 1
        if not draws:
            # Drawn in thousands: one at a time would take most of the time.
            draws = rng.exponential(1 / rate, 4096).tolist() if rate else [math.inf] * 4096
        until, length = draws.pop(), seconds_of_part[worker]
        if until < length:
            lost += 1
            taken -= 1
            gone = s.preempted_seconds if rng.random() < preempted else 0.0
            away += gone
            wasted += until + s.start_seconds
            heapq.heappush(heap, (ready + until + gone + s.start_seconds, worker, True))
        else:
            heapq.heappush(heap, (ready + length, worker, False))
    seconds = max(ends)
    total = seconds * s.workers
    # They count at the same time, and the store serves all of them.
    each = listing if s.count == "listing" else parts * r.record
    counted = max(each * s.latency, each * s.workers / s.store_requests)
    store.requests += each * s.workers
    return Outcome(
        seconds=seconds,
        ideal_seconds=s.images / (s.workers * s.images_per_second),
        wasted_share=wasted / total,
        idle_share=(seconds * s.workers - sum(ends) + away) / total,
        store_share=waited / total,
        count_seconds=counted,
        requests=store.requests,
        files=2 * parts + 2,
        list_seconds=max(listing * s.latency, listing / s.store_requests),
        lost_parts=lost,
    )


def duration(seconds: float) -> str:
    """Seconds, hours or days, to two digits."""
    for unit, size in (("d", DAY), ("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


HEADER = (
    "| images | workers | part | other | time | ideal | wasted | idle | store | requests | count | files |",
    "|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def row(setting: Setting, outcome: Outcome) -> str:
    """A line of a table."""
    o = outcome
    cells = [
        f"10^{math.log10(setting.images):.0f}",
        f"{setting.workers:,}",
        f"{setting.part_size:,}",
        _other(setting),
        duration(o.seconds),
        duration(o.ideal_seconds),
        *(f"{share:.1%}" for share in (o.wasted_share, o.idle_share, o.store_share)),
        f"{o.requests:.1g}",
        duration(o.count_seconds),
        f"{o.files:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _other(setting: Setting) -> str:
    """What is other than in the first table."""
    usual = Setting(1, 1)
    said = {
        "sharing": "a queue",
        "count": "counted by records",
        "slow_share": "no stragglers",
        "preemptions_per_day": f"{setting.preemptions_per_day:g} preemptions a day",
    }
    return ", ".join(text for name, text in said.items() if getattr(setting, name) != getattr(usual, name))


def scenarios(quick: bool) -> dict[str, list[Setting]]:
    """The tables, by name."""
    largest = 10**7 if quick else 10**9
    sizes = [n for n in (10**6, 10**7, 10**8, 10**9) if n <= largest]
    grid = [Setting(n, w) for n in sizes for w in (1, 64, 512, 4096) if n / w <= 2e7]
    far = Setting(largest, 4096)
    changes = [
        far,
        replace(far, count="records"),
        replace(far, slow_share=0.0),
        replace(far, part_size=4096),
        replace(far, part_size=4096, sharing="queue"),
    ]
    calm = Setting(10**7, 64, slow_share=0.0)
    often = [replace(calm, preemptions_per_day=times) for times in (0, 24, 240)]
    preempted = [replace(one, part_size=size) for one in often for size in (64, 512, 4096)]
    return {"as it is": grid, "changes": changes, "preemption": preempted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 10^7 images")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    for name, settings in scenarios(options.quick).items():
        print(f"\n{name}\n\n" + "\n".join(HEADER))
        for setting in settings:
            outcome = simulate(setting)
            print(row(setting, outcome), flush=True)
            found.setdefault(name, []).append({"setting": asdict(setting), "outcome": asdict(outcome)})
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
