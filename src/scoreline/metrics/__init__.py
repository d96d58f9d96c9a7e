"""Distances between sets of images, each with its standard error; independent of diffusion."""
