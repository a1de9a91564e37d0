from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
# workers import the known answers too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks: a second thread costs more than it gives, here and in workers
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    from bench import registry

    registry.load_plugins()
    assert not registry.broken


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws without a generator does not depend on which tests ran before it in this process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


DEAR = (
    "test_contract.py",
    "test_smoke.py",
    "test_instrument.py",
    "decoding/test_family.py",
    "test_bad_luck.py",
    "test_scaffold.py",
    "test_runner.py",
    "test_plugin.py",
    "test_disturbed.py",
    "test_determinism.py",
    "test_calibration.py",
)
"""Files that take longest, in this order: several processes, which divide the files, begin with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(DEAR) if str(item.path).endswith(f"/{name}")), len(DEAR))

    items.sort(key=place)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run of the real runner, inline."""
    from bench import api

    folder = tmp_path_factory.mktemp("finished")
    small = {
        "name": "grounded_chat",
        "new_tokens": 8,
        "items": 2,
        "timed_prompts": 6,
        "burst_prompts": 1,
        "passage_words": 20,
    }
    config = {
        "name": "small",
        "model": "tiny:llama",
        "dtype": "float32",
        "inline": True,
        "replicates": 2,
        "comparisons": [{"workload": small, "arms": ["autoregressive", "prompt_lookup"]}],
    }
    return api.run(config, out=folder, lock=folder / "lock", max_time="1h").folder
