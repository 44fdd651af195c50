"""From the fleet's state to what should change: pure functions on the domain alone."""
