"""Networks: (image, noise label, class label, augmentation label) -> image; independent of diffusion."""
