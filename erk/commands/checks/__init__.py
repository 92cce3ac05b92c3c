"""The checks of `erk doctor`: the machine, stored files, golden vectors."""
