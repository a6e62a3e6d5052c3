import logging
import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_narrow():
    """One thread a test; torch's checkpoint logger says every call at debug level."""
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed").setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("c10d"):
            logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
