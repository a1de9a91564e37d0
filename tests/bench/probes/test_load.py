from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

from bench.probes import load


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_our_own_work_is_no_disturbance_and_anothers_is() -> None:
    reading = load.Reading(wall=10.0, busy=100.0, stolen=5.0, ours=50.0)
    ours = load.Reading(wall=12.0, busy=104.0, stolen=5.0, ours=54.0)
    others = load.Reading(wall=12.0, busy=104.0, stolen=5.0, ours=52.0)
    stolen = load.Reading(wall=12.0, busy=104.0, stolen=6.0, ours=54.0)
    assert load.between(reading, ours)["disturbed"] is False
    assert load.between(reading, others) == {"others": 1.0, "stolen": 0.0, "gpu_strangers": 0, "disturbed": True}
    assert load.between(reading, replace(ours, gpu_strangers=1))["disturbed"] is True
    assert load.between(reading, stolen)["disturbed"] is True


def test_unknown_is_none_with_a_reason() -> None:
    assert load.between(None, None)["disturbed"] is None
    assert load.between(None, None)["reason"]


def test_a_busy_loop_is_seen_unless_it_is_ours() -> None:
    process = multiprocessing.get_context("spawn").Process(target=busy, args=(8.0,))
    process.start()
    time.sleep(3.0)  # let it come up
    before_foreign, before_own = load.read([]), load.read([process.pid])
    time.sleep(1.5)
    foreign, own = load.between(before_foreign, load.read([])), load.between(before_own, load.read([process.pid]))
    process.join()
    assert foreign["disturbed"]
    assert foreign["others"] > own["others"] + 0.5
