"""The command line: one `erk` group with lazily loaded subcommands."""
