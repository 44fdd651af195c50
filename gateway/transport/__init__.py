"""The connection between a worker on another machine and a gateway. It knows neither of them.

In reading order: `registration` (one HTTP call with the join token), `node_credentials` and `tls`, `client` and
`server` (the two ends of a session), `session` over `stream_pump` (one session at the gateway), `codec` with
`validation` and `advertised` (translates messages to records and refuses wrong ones), `limits` (what a peer may open
and send), `errors`. `pb/` is generated.
"""
