"""EfficientNet-Lite0, a small network that was trained on the photographs of ImageNet."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

STEM, HEAD, CLASSES = 32, 1280, 1000
STAGES = (
    # kernel, channels, blocks, stride of the first block, expansion
    (3, 16, 1, 1, 1),
    (3, 24, 2, 2, 6),
    (5, 40, 2, 2, 6),
    (3, 80, 3, 2, 6),
    (5, 112, 3, 1, 6),
    (5, 192, 4, 2, 6),
    (3, 320, 1, 1, 6),
)
EPSILON = 1e-3
"""Added to the variance by every batch normalisation."""


class Convolution(nn.Module):
    """A convolution without bias, then batch normalisation; the border is zeros as in TensorFlow's "SAME".

    Where a stride makes the padding odd, the further zero is at the bottom and on the right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:])
        x = pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        out: Tensor = self.norm(self.convolution(x))
        return out


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution and linear projection, added to the input where the shapes agree.

    Source: Sandler et al. (2018), arXiv:1801.04381, section 3.3.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else relu6(self.expand(x))
        y = self.project(relu6(self.depthwise(y)))
        return torch.add(x, y) if self.residual else torch.as_tensor(y)


class EfficientNetLite0(nn.Module):
    """Pixels (x - 127) / 128 (B, 3, H, W) -> `features` (B, 1280), means over places.

    EfficientNet-B0 without squeeze-and-excitation and with ReLU6, 4.7 M parameters. `forward` returns scores of the
    1,000 classes (B, 1000).

    When to use it: as the network of `imagenet_features.ImagenetFeatures`.

    Source: Tan & Le (2019), arXiv:1905.11946, table 1; the Lite variants are those of the same authors' release.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        self.blocks = nn.Sequential()
        width = STEM
        for kernel, channels, blocks, stride, expansion in STAGES:
            for block in range(blocks):
                self.blocks.append(InvertedBottleneck(width, channels, kernel, 1 if block else stride, expansion))
                width = channels
        self.head = Convolution(width, HEAD)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def load_in_order(self, published: Mapping[str, Tensor]) -> None:
        """Load the tensors of a file by their order, which is that of the layers, whatever their names.

        Raises:
            ValueError: if their number or a shape is not this network's.
        """
        own = self.state_dict()
        theirs = [tuple(tensor.shape) for tensor in published.values()]
        if theirs != [tuple(tensor.shape) for tensor in own.values()]:
            raise ValueError(f"{len(theirs)} tensors are not the {len(own)} of EfficientNet-Lite0")
        self.load_state_dict(dict(zip(own, published.values(), strict=True)))

    def features(self, x: Tensor) -> Tensor:
        x = self.blocks(relu6(self.stem(x)))
        return torch.mean(relu6(self.head(x)), (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x))
        return scores
