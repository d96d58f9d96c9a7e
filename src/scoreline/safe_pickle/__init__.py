"""A pickle machine that executes nothing, and the limits of what a file may ask of it."""
