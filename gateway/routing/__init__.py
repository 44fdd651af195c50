"""The way of one request from its model's name to a lease on a replica. Each request is decided anew.

In reading order: `router` (carries one request), `admission` over `fair_queue` (decides which request gets the next
free slot), `attempt` (decides what a failed call means), `picker` (chooses the replica, pure), `load_tracker` and
`lease` (count the requests at each replica), `probe_cache` (remembers which replicas live), `open_calls`, `silence` and
`call_watch` (end calls that nobody answers), `peer_fairness` (leaves slots to older requests at other gateways),
`reservation` (strict mode), `rejections` (the errors of waiting requests), `decisions` (the record of each request).
"""
