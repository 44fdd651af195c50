"""The client side of backend.proto: typed calls to backend processes.

In reading order: `protocol` (the calls of the router and the worker), `grpc_backend` over `translate` (inference
calls), `unread_answer` and `send_limiter` (limits of memory), `call_errors` (the meaning of failed calls),
`channel_pool` with `patient_channel`, `leaving_connection` and `keepalive` (connections), `grpc_probe`, `grpc_control`,
`metadata`. `pb/` is generated.
"""
