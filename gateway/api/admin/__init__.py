"""The admin API: the fleet, its models and its nodes, for people and for other gateways."""
