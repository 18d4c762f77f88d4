"""Events to hops to journeys. Pure: it sees plain data only, and cannot tell a live kernel from a file."""
