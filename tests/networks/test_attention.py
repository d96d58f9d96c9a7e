"""Attention with interleaved channels against a loop, and its second derivatives."""

import pytest
import torch
from by_hand import attention

from scoreline.networks.attention import interleaved_attention


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("twice", [False, True])
def test_against_a_loop(heads: int, twice: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 36, 2, 3, dtype=torch.float64)
    out = interleaved_attention(qkv, heads, twice)
    assert out.shape == (2, 12, 2, 3)
    torch.testing.assert_close(out, attention(qkv, heads), rtol=1e-12, atol=1e-12)


def test_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda value: interleaved_attention(value, 2, twice=True), qkv)
