"""Processes that share the optimizer's work come to what each would have come to alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moldiff.training.optim import MuonAdamW

NUM_PROCESSES = 2


class IndexBlocks(nn.Module):
    """Matrices of three shapes, one of them alone in its shape, and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(20, 20)])


def stepped(share: tuple[int, int]) -> IndexBlocks:
    """The blocks after one step."""
    blocks = IndexBlocks()
    optimizer = MuonAdamW(blocks.named_parameters())
    optimizer.share = share
    for seed, parameter in enumerate(blocks.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()
    return blocks


def test_two_processes_that_share_the_matrices_take_the_step_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[Tensor] = []

    def collect(received: list[Tensor], sent: Tensor) -> None:
        messages.append(sent.clone())

    def deliver(received: list[Tensor], sent: Tensor) -> None:
        for target, message in zip(received, messages, strict=True):
            target.copy_(message)

    monkeypatch.setattr(torch.distributed, "all_gather", collect, raising=False)
    for rank in range(NUM_PROCESSES):
        stepped((rank, NUM_PROCESSES))
    # Of the two of 32 x 16 each has one to do; 16 x 32 and 20 x 20 come once, and are for the first.
    assert [int((message != 0).sum()) for message in messages] == [2 * 512 + 400, 512]
    monkeypatch.setattr(torch.distributed, "all_gather", deliver, raising=False)
    alone = stepped((0, 1))
    for rank in range(NUM_PROCESSES):
        shared = stepped((rank, NUM_PROCESSES))
        for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
            torch.testing.assert_close(one, other)
