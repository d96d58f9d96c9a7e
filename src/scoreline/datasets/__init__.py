"""Data sets: images as uint8 NCHW with integer labels; independent of diffusion and Lightning."""
