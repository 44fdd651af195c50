"""The client side of backend.proto: typed calls to backend processes.

In reading order: `protocol` (the calls of the router and the worker), `grpc_backend` over `translate`, `token_logprobs`
and `text_calls` (inference calls), `unread_answer` and `send_limiter` (limits of memory), `call_errors` (the meaning of
failed calls), `grpc` (the client of inference calls: gRPC on Trio). Rare calls go over grpclib: `grpc_probe`,
`grpc_control`, over `dial` with `patient_channel` and `leaving_connection`. Both use `keepalive` and `metadata`. `pb/`
is generated.
"""
