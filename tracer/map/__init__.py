"""What hangs on what: a snapshot of the network as a picture and as tables, and what will bite in it."""
