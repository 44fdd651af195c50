"""What joins a worker on another machine to a gateway, and knows neither of them.

In reading order: `registration` (one HTTP call with the join token), `credentials` and `tls`, `client` and `server`
(the two ends of a session), `session` over `stream_pump` (one session at the gateway), `codec` with `validation` and
`advertised` (messages to records, and what is refused of them), `limits` (what a peer may open and send), `errors`.
`pb/` is generated.
"""
