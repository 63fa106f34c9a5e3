"""The command line: one command per stage, and commands to run by hand."""
