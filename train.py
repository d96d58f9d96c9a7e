"""Train a score model: in a clone, the same as the installed `scoreline train`."""

from scoreline.scripts.train import main

if __name__ == "__main__":
    main()
