"""The command line: one file a command, each of which parses, wires and runs."""
