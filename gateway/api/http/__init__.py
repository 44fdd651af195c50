"""HTTP itself: the listener, requests and responses, credentials, and the guards in front of every route.

In reading order: `exchange` (one request and its response), `client_watch` (what ends when its client leaves),
`listener` (accepts connections and serves each, from its bytes to the application), `http_app` (guards, roles, errors,
the log line of each request), `auth` and `browser_guard` (who may call), `bodies`, `body_coding` and `json_count`
(memory, compression and size of request bodies), `json_body` and `query_params` (what they say), `errors`,
`event_stream`, `stream_keepalive` (comments for streams that wait), `byte_range`.
No module here knows a dialect: a route brings its own way to write an error.
"""
