"""Calibrate a trained model: in a clone, the same as the installed `scoreline calibrate`."""

from scoreline.scripts.calibrate import main

if __name__ == "__main__":
    main()
