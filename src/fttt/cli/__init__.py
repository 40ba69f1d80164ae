"""The command line: one file a command, parse -> config -> call."""
