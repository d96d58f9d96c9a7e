"""The command that the card of the shipped digits features names: python -m scoreline.metrics.digit_classifier PATH."""

import sys

from scoreline.metrics.classifier import main

if __name__ == "__main__":
    main(["digits", *sys.argv[1:]])
