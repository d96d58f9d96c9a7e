"""Networks: (image, noise label, class label) -> image. They know nothing of diffusion."""
