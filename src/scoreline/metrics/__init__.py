"""Distances between sets of images, each with its error; nothing here knows of diffusion."""
