"""The client side of backend.proto: calls to backend processes, typed on our side of the wire.

In reading order: `protocol` (what the router and the worker ask for), `grpc_backend` over `translate` (inference
calls), `unread_answer` and `send_limiter` (what is kept in memory), `call_errors` (what a failed call means),
`channel_pool` with `patient_channel`, `leaving_connection` and `keepalive` (connections), `grpc_probe`,
`grpc_control`, `metadata`. `pb/` is generated.
"""
