"""From "what is wanted" to "what runs": a pure planner between durable desired state and what workers report."""
