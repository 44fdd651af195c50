"""Where the fleet's state lives: one protocol, several stores, one contract suite."""
