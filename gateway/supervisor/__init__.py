"""Keeps several processes of one gateway running on a machine (`gateway serve --processes N`).

In reading order: `layout` (what is different at each process, and what is refused), `sockets` (opened once, for all
processes that come and go), `readiness` (how a process says that it serves), `child` (one process, from its start to
its exit), `slot` (keeps a child running), `supervisor` (all of them: start, reload, stop).
"""
