"""The harness of llm-efficiency-bench: it names no technique and no workload.

`bench.run` and `bench.Run` are the command line's `run` and a stored run, from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Run, run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """Import the API when it is asked for: `import bench` stays quick, and needs no torch."""
    if name in {"Run", "run"}:
        from bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
