"""Turns the fleet's state into a plan of changes: pure functions on the vocabulary of `domain` alone.

The README in this folder shows the stages in one diagram and one plan as an example. In reading order:

- `planning_input`: what a plan is made from;
- `plan`: what comes out, with a reason for each change;
- `planner`: the one function that makes a plan, stage by stage;
- `working_state`: the fleet as it will be when the plan so far is carried out;
- `reconcile` and `watchdog`: which replicas have to go;
- `scale`: how many replicas a model should have;
- `placement`: which node a new replica goes to;
- `feasibility`: whether a replica fits on a node, and `node_resources`: what a node has left;
- `preemption`: which replicas end so that another model fits;
- `builder`: the plan while it grows;
- `history`: what the leader remembers from one plan to the next.
"""
