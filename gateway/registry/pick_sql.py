"""The routing policy as one SELECT over the registry's tables: which replica serves the next request of a model.

Theory of operation. A gateway normally picks in memory (`routing.picker.pick`) from its view and its own leases. Where
gateways must not differ for a moment, the pick belongs in the transaction that takes the lease, so this is the same
predicate and the same order in SQL; tests/properties/test_sql_order.py holds both to one answer. It is exact in what
the registry knows:

| part of the policy        | in the registry                                                           |
|---------------------------|---------------------------------------------------------------------------|
| routable (R11, R12, A8)   | all of it; what rows.py reads as not routable is not routable here either |
| free slot                 | published leases < parallel; not a refusal ("full") that one gateway got  |
| did not answer a probe    | no: that is how one gateway sees a replica, not what the replica is       |
| load                      | published leases; not the phantoms of one gateway's failures              |
| longest unused            | the latest use that any gateway published; NULL, never used, comes first  |
| free VRAM                 | the node's column; NULL, unknown, counts as none                          |
| chance                    | no: the replica's id decides, so one state has one answer                 |

`pick_statement` is SQL that SQLite and PostgreSQL both understand, up to the placeholder and the three JSON conditions
that it is given. It takes no locks: whoever picks under concurrency has to serialise the picks of a model first,
because a database does not sort again after it waited for a row (R3).
"""

from typing import Final, NamedTuple

from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.registry.rows import BUDGET_KEYS, SAID_KEYS, SPEC_KEYS
from gateway.registry.sqlite_file import Transaction


class Picked(NamedTuple):
    replica_id: ReplicaId
    has_free_slot: bool
    """False: it is the best of those that are all taken, and nothing may be bound to it now."""


def pick_statement(model: str, spec_is_readable: str, node_is_readable: str, selector_matches: str) -> str:
    """The SELECT of the best replica, as (id, has_free_slot); no row if none is routable.

    model             -- the placeholder of the model's name
    spec_is_readable  -- whether this version understands the model `m`, see `rows.model_from_row`
    node_is_readable  -- whether it understands what is said of the node `n`, see `rows.node_from_row`
    selector_matches  -- whether the labels of the node `n` are readable, and all that the selector of `m` asks for
    """
    return f"""
        SELECT r.id, coalesce(sum(l.open), 0) < r.parallel AS has_free_slot
        FROM replicas AS r
        JOIN models AS m ON m.name = r.model
        JOIN nodes AS n ON n.id = r.node_id
        LEFT JOIN leases AS l ON l.replica_id = r.id
        WHERE r.model = {model}
          AND r.revision = m.revision
          AND n.link = '{NodeStatus.HEALTHY}'
          AND n.approved
          AND NOT n.draining
          AND r.desired = '{Desired.RUN}'
          AND r.observed = '{Observed.READY}'
          AND r.address IS NOT NULL
          AND {spec_is_readable}
          AND {node_is_readable}
          AND {selector_matches}
        GROUP BY r.id, n.id
        ORDER BY
          has_free_slot DESC,
          coalesce(sum(l.open), 0),
          max(l.last_used) NULLS FIRST,
          coalesce(n.free_vram_bytes, 0) DESC,
          r.id
        LIMIT 1
    """  # noqa: S608 - constants only


# A value of the wrong type under a known key is not looked for: no gateway writes that. AND does not fix an order of
# evaluation, CASE does, and JSON functions fail on what is no JSON.
_SPEC_IS_READABLE: Final = f"""
    CASE WHEN json_valid(m.spec) THEN
      m.source IN ('file', 'api')
      AND json_type(m.spec, '$.backend') = 'text'
      AND json_type(m.spec, '$.artifact') = 'text'
      AND coalesce(json_type(m.spec, '$.selector'), 'object') = 'object'
      AND NOT EXISTS (SELECT 1 FROM json_each(m.spec) AS given WHERE given.key NOT IN {tuple(sorted(SPEC_KEYS))})
    END
"""  # noqa: S608 - constants only
# The type is asked for because a newer SQLite shows what is no object (a budget of null) under a key of its own.
_NODE_IS_READABLE: Final = " AND ".join(
    f"""
    CASE WHEN json_valid(n.{column}) THEN
      json_type(n.{column}) = 'object'
      AND NOT EXISTS (SELECT 1 FROM json_each(n.{column}) AS given WHERE given.key NOT IN {tuple(sorted(SAID_KEYS))})
      AND NOT EXISTS (
        SELECT 1 FROM json_each(n.{column}, '$.vram_budget') AS given
        WHERE json_type(n.{column}, '$.vram_budget') = 'object' AND given.key NOT IN {tuple(sorted(BUDGET_KEYS))}
      )
    END
    """  # noqa: S608 - constants only
    for column in ("declared", "overrides")
)
_SELECTOR_MATCHES: Final = """
    CASE WHEN json_valid(m.spec) AND json_valid(n.labels) THEN
      json_type(n.labels) = 'object'
      AND NOT EXISTS (SELECT 1 FROM json_each(n.labels) AS label WHERE label.type <> 'text')
      AND NOT EXISTS (
        SELECT 1 FROM json_each(m.spec, '$.selector') AS wanted
        WHERE NOT EXISTS (
          SELECT 1 FROM json_each(n.labels) AS label WHERE label.key = wanted.key AND label.value = wanted.value
        )
      )
    END
"""

PICK: Final = pick_statement("?", _SPEC_IS_READABLE, _NODE_IS_READABLE, _SELECTOR_MATCHES)
"""For SQLite."""


def pick_in_sql(transaction: Transaction, model: ModelName) -> Picked | None:
    """The best replica of `model` by the rows as they are now; None if none is routable."""
    for replica_id, has_free_slot in transaction.rows(PICK, model):
        return Picked(ReplicaId(replica_id), bool(has_free_slot))
    return None
