"""From "a request for this model" to "a lease on that replica", decided anew for each request.

In reading order: `router` (carries one request), `admission` over `fair_queue` (who gets the next free slot),
`attempt` (what each call teaches), `picker` (which replica, pure), `load_tracker` and `lease` (who uses what),
`probe_cache` (what is known of replicas' lives), `open_calls`, `silence` and `call_watch` (calls that nobody
answers), `peer_fairness` (older requests at other gateways), `reservation` (strict mode), `rejections` (what a
waiting request is told), `decisions` (why).
"""
