"""Sample images: the same as `erk generate`."""

from erk.commands.generate import main

if __name__ == "__main__":
    main()
