"""The command line: the stages' commands and those for people."""
