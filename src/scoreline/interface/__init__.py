"""The API of Python for models of other programs: denoisers from their predictions, and choices by name."""
