"""From the fleet's state to what should change: pure functions on the vocabulary alone.

```
ClusterState -> working_state -> reconcile -> scale -> placement -> Plan
                 (the fleet      (what ends)  (how     (where, with feasibility,
                  as it will be)               many)    node_resources, preemption)
```

In reading order: `plan` (what comes out), `planner` (the one function that makes it), `working_state` and `history`
(what it decides from), `reconcile` (which replicas have to go), `scale` (how many there should be), `placement` (on
which node), `feasibility` (whether one fits), `node_resources` (what a node has left), `preemption` (who leaves for
it), `builder`.
"""
