"""The listener: it accepts connections, and serves each by our own HTTP/1 or by the HTTP/2 of hypercorn.

In reading order: `listening_socket`, `server` with `accepting` and `open_files` (accepts connections, as many as there
may be, and drains them), `retirement` (ends it without a client that notices), `connection` (handshake and choice of
the protocol), `byte_stream` (reads and bounded writes), `dropping` (how fast refused bodies are thrown away).
HTTP/1: `http1_head` with `request_target` (what is refused),
`http1_parser` (bytes in, events out), `http1_input` (the task that reads), `http1_response` (the bytes of an answer),
`http1_request` (one as ASGI has it), `http1_connection` (the task that serves). HTTP/2: `http2` (limits on a client's
frames) and `http2_connection`.
"""
