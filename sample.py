"""Sample images from a checkpoint: in a clone, the same as the installed `scoreline sample`."""

from scoreline.scripts.sample import main

if __name__ == "__main__":
    main()
