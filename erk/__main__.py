"""python -m erk ...: the same as the command `erk`."""

from erk.commands.main import main

if __name__ == "__main__":
    main()
