"""Attention with interleaved channels against a loop, and its second derivatives."""

import pytest
import torch
from by_hand import attention

from scoreline.networks.attention import qkv_attention


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("twice", [False, True])
def test_against_a_loop(heads: int, twice: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 36, 2, 3, dtype=torch.float64)
    out = qkv_attention(qkv, heads, twice=twice)
    assert out.shape == (2, 12, 2, 3)
    torch.testing.assert_close(out, attention(qkv, heads), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "place"), [("heads_first", (6, 2, 1)), ("qkv_first", (2, 4, 1))])
def test_orders_of_the_channels(order: str, place: tuple[int, int, int]) -> None:
    """Two heads of two channels each: channel c of part p of head h is at place . (h, p, c)."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 12, 2, 2, dtype=torch.float64)
    rows = [h * place[0] + p * place[1] + c * place[2] for h in range(2) for c in range(2) for p in range(3)]
    assert sorted(rows) == list(range(12))
    assert rows != list(range(12))
    torch.testing.assert_close(qkv_attention(qkv, 2, order), attention(qkv[:, rows], 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["heads_first", "qkv_first"])
def test_orders_against_numbers(order: str) -> None:
    """One position attends to itself alone: what comes out is v."""
    qkv = torch.arange(12.0).reshape(1, 12, 1, 1)
    expected = {"heads_first": [4, 5, 10, 11], "qkv_first": [8, 9, 10, 11]}[order]
    assert qkv_attention(qkv, 2, order).flatten().tolist() == expected


def test_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda value: qkv_attention(value, 2, twice=True), qkv)
