"""HTTP: the listener, the guards in front of every route, and thin handlers over pure schema and encode."""
