"""The routing policy as one SELECT over the tables of PostgreSQL: which replica serves the next request of a model.

Theory of operation. A gateway normally picks in memory (`routing.picker.pick`) from its view and its own leases. Where
gateways must not differ for a moment, the pick belongs in the transaction that takes the lease (postgres_pick.py), so
this is the same predicate and the same order in SQL; tests/properties/test_sql_order.py holds both to one answer.

| part of the policy        | where it comes from                                                       |
|---------------------------|---------------------------------------------------------------------------|
| routable (R11, R12, A8)   | the rows; what rows.py reads as not routable is not routable here either  |
| a surge (A8)              | the rows: old revisions serve until a replica of the present one does     |
| free slot                 | leases of the gateways that live < parallel; the asking gateway brings    |
|                           | its own, and which replicas have just refused it                          |
| suspect, busy             | the asking gateway: that is how it sees a replica, not what the replica is|
| load                      | leases; not the penalties of one gateway's failures (those are suspect)   |
| longest unused            | the latest use that any gateway tells; never used comes first             |
| free VRAM                 | the node's column; NULL, unknown, counts as none                          |
| chance                    | no: the replica's id decides, so one state has one answer                 |

It takes no locks: whoever picks under concurrency has to serialise the picks of a model first, because a database does
not sort again after it waited for a row (R3). A value of the wrong type under a known key is not looked for: no gateway
writes that. JSON with a NUL in it is an error of the statement: these functions have no text for it.
"""

from typing import Final

from gateway.domain.cluster import NodeStatus
from gateway.domain.lifecycle import Desired, Observed
from gateway.registry.postgres.sql import now
from gateway.registry.rows import BUDGET_KEYS, DECLARATION_KEYS, SPEC_KEYS


def _has_only(document: str, keys: frozenset[str]) -> str:
    """Returns a condition: the document is an object with these keys only. It uses CASE because AND fixes no order of
    evaluation, and the functions for keys fail on a value that is no object."""
    unknown = f"SELECT FROM json_object_keys({document}) AS key WHERE key NOT IN {tuple(sorted(keys))}"
    return f"CASE WHEN json_typeof({document}) = 'object' THEN NOT EXISTS ({unknown}) ELSE false END"


def _entries(document: str) -> str:
    return f"json_each(CASE WHEN json_typeof({document}) = 'object' THEN {document} ELSE '{{}}' END)"


_SPEC_IS_READABLE: Final = f"""
    m.source IN ('file', 'api')
    AND {_has_only("m.spec", SPEC_KEYS)}
    AND json_typeof(m.spec -> 'backend') = 'string'
    AND json_typeof(m.spec -> 'artifact') = 'string'
    AND coalesce(json_typeof(m.spec -> 'selector'), 'object') = 'object'
    AND coalesce(m.spec ->> 'rollout', 'replace') IN ('replace', 'surge')
"""
_NODE_IS_READABLE: Final = " AND ".join(
    f"""
    {_has_only(f"n.{column}", DECLARATION_KEYS)}
    AND (coalesce(json_typeof(n.{column} -> 'vram_budget'), 'null') <> 'object'
         OR {_has_only(f"(n.{column} -> 'vram_budget')", BUDGET_KEYS)})
    """
    for column in ("declared", "overrides")
)
_SELECTOR_MATCHES: Final = f"""
    json_typeof(n.labels) = 'object'
    AND NOT EXISTS (SELECT FROM {_entries("n.labels")} AS label WHERE json_typeof(n.labels -> label.key) <> 'string')
    AND NOT EXISTS (
        SELECT FROM {_entries("model.selector")} AS wanted
        WHERE (n.labels ->> wanted.key = model.selector ->> wanted.key) IS NOT TRUE
    )
"""  # noqa: S608 - constants only
# As text, a string is in quotation marks and so no number.
_COUNT: Final = "CASE WHEN said.value::text ~ '^[0-9]{1,9}$' THEN said.value::text::bigint ELSE 0 END"
_SINCE: Final = r"""
    CASE WHEN said.value::text ~ '^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$' THEN said.value::text::float8 END
"""

PICK: Final = f"""
WITH model AS (
    SELECT m.name, m.revision, m.spec -> 'selector' AS selector, m.spec ->> 'rollout' = 'surge' AS surges
    FROM models AS m
    WHERE m.name = $2 AND {_SPEC_IS_READABLE}
), routable AS (
    SELECT r.id, r.parallel, r.revision = model.revision AS is_newest, coalesce(n.free_vram_bytes, 0) AS free_vram
    FROM model
    JOIN replicas AS r ON r.model = model.name
    JOIN nodes AS n ON n.id = r.node_id
    WHERE (r.revision = model.revision OR model.surges)
      AND n.link = '{NodeStatus.HEALTHY}'
      AND n.approved
      AND NOT n.draining
      AND r.desired = '{Desired.RUN}'
      AND r.observed = '{Observed.READY}'
      AND r.address IS NOT NULL
      AND {_NODE_IS_READABLE}
      AND {_SELECTOR_MATCHES}
), others AS (
    SELECT leases, uses FROM gateways WHERE id <> $3 AND expires_at > {now(1)}
), lease AS (
    SELECT said.key AS replica_id, {_COUNT} AS open FROM others, {_entries("others.leases")} AS said
    UNION ALL
    SELECT * FROM unnest($4::text[], $5::bigint[])
), load AS (
    SELECT replica_id, sum(open) AS open FROM lease GROUP BY replica_id
), use AS (
    SELECT said.key AS replica_id, {_SINCE} AS since FROM others, {_entries("others.uses")} AS said
    UNION ALL
    SELECT replica_id, {now(1)} - seconds FROM unnest($6::text[], $7::float8[]) AS own (replica_id, seconds)
), last_use AS (
    SELECT replica_id, max(since) AS since FROM use GROUP BY replica_id
), standing AS (
    SELECT
        candidate.id,
        candidate.id = ANY($9::text[]) AS is_suspect,
        coalesce(load.open, 0) >= candidate.parallel OR candidate.id = ANY($10::text[]) AS is_taken,
        candidate.id = ANY($11::text[]) AS is_busy,
        coalesce(load.open, 0) AS load,
        last_use.since AS last_used,
        candidate.free_vram
    FROM routable AS candidate
    LEFT JOIN load ON load.replica_id = candidate.id
    LEFT JOIN last_use ON last_use.replica_id = candidate.id
    WHERE (candidate.is_newest OR NOT EXISTS (SELECT FROM routable WHERE is_newest))
      AND candidate.id <> ALL($8::text[])
)
SELECT id, NOT is_taken AS has_free_slot
FROM standing
ORDER BY is_suspect, is_taken, is_busy, load, last_used NULLS FIRST, free_vram DESC, id COLLATE "C"
LIMIT 1
"""  # noqa: S608 - constants only
"""One row (id, has_free_slot), or none if no replica is routable. Without a free slot it is the best of those that are
taken, and nothing may be bound to it now.

$1 the time of a test's clock or NULL, $2 the model, $3 the asking gateway, $4 and $5 its leases (ids, counts), $6 and
$7 what it has used (ids, seconds ago), then ids: $8 excluded, $9 suspect, $10 full, $11 busy."""
