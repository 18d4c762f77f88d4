"""What this machine lets each command show: found, judged, and mended by whom it concerns."""
