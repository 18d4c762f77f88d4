"""The live kernel as a source of events: compile, load, attach, read."""
