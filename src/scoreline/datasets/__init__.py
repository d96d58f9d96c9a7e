"""Real images as uint8 NCHW with integer labels; nothing here knows of diffusion or Lightning."""
