"""The command line: the stage commands, which dvc.yaml runs, and commands for users, such as `recipe plan`."""
