"""The trace file: pcapng that any tool opens, and that a replay reads back without a loss."""
