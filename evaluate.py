"""Measure images: the same as `erk evaluate`."""

from erk.commands.evaluate import main

if __name__ == "__main__":
    main()
