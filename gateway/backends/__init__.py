"""The client side of backend.proto: calls to backend processes, typed on our side of the wire."""
