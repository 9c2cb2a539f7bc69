"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Processes that tests start see the installed package, not the bare source folder that they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are fastest, and threads of several processes do not wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
