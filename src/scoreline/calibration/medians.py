"""The median of a quantity over images, with its standard error."""

import torch
from torch import Tensor


def median(per_image: Tensor) -> tuple[Tensor, Tensor]:
    """Median over the images, (.., n) -> (..), and its bootstrap standard error without resampling.

    The median of a resample is the i-th smallest image's value x_(i) with probability

        w_i = I_{i/n}(a, a) - I_{(i-1)/n}(a, a),   a = (n + 1) / 2,

    I the regularised incomplete beta function; the error is the standard deviation of x_(i) under w. For odd n it is
    that of infinitely many bootstrap resamples; for even n, where the median is the mean of the middle two, it is an
    approximation (under 5 % off at n = 100). It needs no density f, unlike the asymptotic 1 / (2 f sqrt(n)).

    Source: Maritz & Jarrett (1978), A note on estimating the variance of the sample median, JASA 73:194; Efron (1979),
    Bootstrap methods, Annals of Statistics 7:1, Sec. 3.
    """
    from scipy.special import betainc

    ordered, count = per_image.sort(dim=-1).values, per_image.shape[-1]
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    probability = torch.from_numpy(betainc((count + 1) / 2, (count + 1) / 2, edges.numpy())).diff()
    off = ordered - (ordered * probability).sum(-1, keepdim=True)
    middle = ordered[..., (count - 1) // 2 : count // 2 + 1].mean(-1)
    return middle, (off**2 * probability).sum(-1).sqrt()
