"""The harness of llm-efficiency-bench: it names no technique and no workload."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
