"""The `aegis-*` commands: a module each, with its flags and its `main`, which the entry point of its name calls.

They are light: `--help` and a wrong flag need neither torch nor LeRobot. What a command does is in the module of its
name in `work`, which is imported once the flags are read; `doctor` imports nothing but light modules anyway.
"""
