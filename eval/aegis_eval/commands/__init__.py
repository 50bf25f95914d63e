"""The `aegis-*` commands: a module each, with its flags and its `main`, which the entry point of its name calls."""
