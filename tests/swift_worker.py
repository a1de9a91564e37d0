"""A worker without a model: the real one's pipe, ties to its parent and loop, with answers made in milliseconds."""

from __future__ import annotations

import time
from typing import Any

from bench import worker


class Swift:
    """Answers as `bench.worker.Bench` does.

    Args:
        setting: `step` is how long a decoding step is said to take, `pause` how long an answer takes [s].
    """

    def __init__(self, setting: dict[str, Any]) -> None:
        self.before: dict[str, int] = {}
        self.step: float = setting.get("step", 0.01)
        self.pause: float = setting.get("pause", 0.003)

    def do(self, message: dict[str, Any]) -> Any:
        time.sleep(self.pause)
        gate = {"name": "true", "passed": True, "detail": ""}
        return {
            "build": {"built": {"prompts": [1, 2]}, "sha256": "b", "model": {"name": "m", "random": True}},
            "prepare": {"seconds": 0.01, "held": {}},
            "quality": {"quality": {"metrics": {"output_nll": [1.0, 2.0]}, "gates": [gate]}, "peak": 1},
            "burst": {"kind": ["prefill", "decode"], "seconds": [0.01, 10 * self.step], "tokens": [1, 10]},
            "memory": {"peak": 100, "reserved": None, "named": 90, "largest": {}, "explained": 0.9},
        }.get(message["do"])


if __name__ == "__main__":
    worker.Bench = Swift  # type: ignore[assignment,misc]
    worker.main()
