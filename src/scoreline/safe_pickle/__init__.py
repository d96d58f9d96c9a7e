"""A pickle machine that executes nothing, and the limits on the work and memory of a file."""
