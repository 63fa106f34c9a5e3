"""The command line: the stage commands, which DVC runs, and user commands, such as `recipe plan`."""
