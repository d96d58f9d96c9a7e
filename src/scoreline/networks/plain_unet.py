"""The common part of the U-Nets of Ho et al. and of Dhariwal & Nichol."""

from torch import Tensor, nn
from torch.nn.functional import silu

from scoreline.networks.arguments import check_probability
from scoreline.networks.embeddings import one_hot, or_zeros
from scoreline.networks.layers import group_norm, zero_weights
from scoreline.networks.residual_block import run
from scoreline.networks.unet_levels import Kinds, Plan, decode, decoder_layers, encode, encoder_layers


class PlainUNet(nn.Module):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C, R, R).

    The embedding is silu(L1(silu(L0(embed(noise) + L_a augment))) + L_c onehot(label)), with matrices L_a and L_c
    without bias: no augmentation and no class are zeros. The head starts at zero.

    When to use it: as the base class of a U-Net with that embedding; `DDPMUNet` and `DhariwalUNet` are its models.

    Args:
        plan: sizes.
        kinds: layers.
        embedding: noise label (B,) -> (B, width); 4 `width` numbers reach the blocks.
        width: see `embedding`.
        eps: constant of the normalisation before the head.
        num_classes: number of classes, 0 for an unconditional network.
        label_dropout: probability with which the training module hides the class.
        augment_dim: numbers in an augmentation label.
        checkpointing: recompute the activations of residual blocks in the backward pass instead of keeping them.
        output_factor: the output has that many times the image's channels.
    """

    def __init__(
        self,
        plan: Plan,
        kinds: Kinds,
        embedding: nn.Module,
        width: int,
        eps: float,
        num_classes: int,
        label_dropout: float,
        augment_dim: int,
        checkpointing: bool,
        output_factor: int = 1,
    ) -> None:
        super().__init__()
        check_probability("label_dropout", label_dropout)
        self.resolution, self.num_classes, self.label_dropout = plan.resolution, num_classes, label_dropout
        self.augment_dim, self.checkpointing = augment_dim, checkpointing
        self.map_noise = embedding
        self.map_augment = nn.Linear(augment_dim, width, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)
        self.map_label = nn.Linear(num_classes, 4 * width, bias=False) if num_classes else None
        self.enc = nn.ModuleDict(encoder_layers(plan, kinds))
        self.dec = nn.ModuleDict(decoder_layers(plan, kinds))
        self.out_norm = group_norm(plan.widths[0], eps)
        self.out_conv = zero_weights(nn.Conv2d(plan.widths[0], output_factor * plan.channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        embedding = self._embed(noise, label, augment)

        def step(layer: nn.Module, image: Tensor) -> Tensor:
            return run(layer, image, embedding, self.checkpointing and self.training)

        x = decode(self.dec.items(), encode(self.enc.values(), x, step), step)
        out: Tensor = self.out_conv(silu(self.out_norm(x)))
        return out

    def _embed(self, noise: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        vector: Tensor = self.map_noise(noise)
        if self.map_augment is not None:
            vector = vector + self.map_augment(or_zeros(augment, self.augment_dim, vector))
        vector = self.map_layer1(silu(self.map_layer0(vector)))
        if self.map_label is not None:
            vector = vector + self.map_label(one_hot(label, self.num_classes, vector))
        return silu(vector)
