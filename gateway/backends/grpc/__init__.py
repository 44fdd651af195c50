"""gRPC over HTTP/2 on Trio: calls with one request, and one answer or a stream of answers.

The inner part is pure: bytes and the time go in, events and bytes come out. In reading order: `frames`, `flow`
(windows), `headers` (HPACK), `peer_settings`, `frame_budget` and `output`, joined by `connection_state` into the state
machine of one connection, which reports `events`; `messages` and `answer` are gRPC's own layer above it.

The outer part waits: `transport` (sockets), `call` with `unary_answer` (who waits for an answer),
`connection` (the tasks that read and write), `pool`.
"""
