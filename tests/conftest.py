"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Processes that tests start see the installed package, not the bare source folder that they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"

# The benchmarks are modules of this folder (`tests.benchmarks.card`); the installed package comes first.
sys.path.append(str(Path(__file__).parents[1]))

# What a script starts in the background ignores Ctrl-C, which tests of interruptions need to come.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are fastest, and threads of several processes do not wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
