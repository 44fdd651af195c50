"""HTTP: the listener, the guards in front of every route, and thin handlers over pure schema and encode.

In reading order: `http` (HTTP itself, whatever is served), `openai` (the dialect that applications speak), `admin` (the
fleet, for people and for other gateways).
"""
