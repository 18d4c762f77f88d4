"""Plain data: what everything else is said in."""
