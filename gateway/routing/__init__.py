"""The way of one request from its model's name to a lease on a replica. Each request is decided anew.

In reading order: `router` (carries one request), `pending_request` (its place and what it has tried), `admission`
over `fair_queue` (who gets the next free slot), `attempt` (what each call teaches), `picker` (which replica, pure),
`load_index` over `rank_order` (the same without a look at each replica), `load_tracker` (the leases: who uses what),
`probe_cache` (what is known of replicas' lives), `open_calls`, `silence` and `call_watch` (calls that nobody answers),
`peer_fairness` (older requests at other gateways), `reservation` (strict mode), `rejections` (the answer to a request
that is not served), `decisions` (why).
"""
