"""What every test shares: one thread a process, a silent home for caches, hypothesis without deadlines."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

settings.register_profile("hpcqa", deadline=None, max_examples=50)
settings.load_profile("hpcqa")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and label lists beside the checkout."""
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"real data are not beside the checkout ({data})")
    return data
