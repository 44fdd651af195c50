"""The SQL statements of the PostgreSQL registry.

A round trip costs more than a row, above all for those that wait for the lock on the counter. So one statement reads
all tables. It returns one row with an array for each column: asyncpg reads those fast and exactly.
"""

from collections.abc import Sequence
from typing import Final

from gateway.domain.peers import SILENT_SECONDS_MAX
from gateway.registry.peer_rows import PLAIN_COLUMNS, TEXT_COLUMNS
from gateway.registry.rows import MODEL_COLUMNS, NODE_COLUMNS, REPLICA_COLUMNS
from gateway.registry.tables import EVENTS_KEPT

CHANNEL: Final = "gateway_version"
"""The channel of the notifications. The payload is the version."""
HASH_COLUMNS: Final = tuple(f"{column}_hash" for column in TEXT_COLUMNS)
DEMAND_COLUMNS: Final = ("id", "demand")

NOW: Final = "extract(epoch FROM clock_timestamp())::float8"


def now(parameter: int) -> str:
    """Returns SQL for the server's clock, or for the parameter if a test gives its own clock."""
    return f"coalesce(${parameter}::float8, {NOW})"


def _columns(table: str, columns: Sequence[str], condition: str) -> str:
    """Returns SQL for one row with an array for each column, NULL if there are no rows. All arrays have the same
    order."""
    arrays = ", ".join(f"array_agg({column}) AS {table}_{column}" for column in columns)
    return f"(SELECT {arrays} FROM {table} WHERE {condition}) AS all_{table}"  # noqa: S608 - constants only


def _read(models: str, nodes: str, replicas: str, *more: str) -> str:
    tables = (
        _columns("models", MODEL_COLUMNS, models),
        _columns("nodes", NODE_COLUMNS, nodes),
        _columns("replicas", REPLICA_COLUMNS, replicas),
        *more,
    )
    return (
        f"SELECT *, {now(1)} AS now FROM (SELECT version FROM state_version) AS counter,"  # noqa: S608 - constants only
        f" (SELECT gateway_id AS leader, epoch, expires_at FROM leadership) AS leader, {', '.join(tables)}"
    )


READ_STATE: Final = _read("true", "true", "true", _columns("gateways", DEMAND_COLUMNS, f"expires_at > {now(1)}"))
"""The statement that reads the whole state. $1 is the time of a test's clock or NULL, here and below."""
READ_PART: Final = _read("$2 OR name = $3", "$2 OR id = $4", "$2 OR node_id = $4")
"""The statement that reads a part of the state: everything if $2 is true, else the model $3 and the node $4."""
_OF_REGISTRATION: Final = "id = $2 OR name = $3 OR (joined_boot_id IS NULL AND link = 'offline')"
READ_FOR_REGISTRATION: Final = _read(
    "false",
    _OF_REGISTRATION,
    f"node_id IN (SELECT id FROM nodes WHERE {_OF_REGISTRATION})",  # noqa: S608 - constants only
    "(SELECT count(*) AS nodes_total FROM nodes) AS count_of_nodes",
)
"""The statement that reads the rows for a registration of the node with id $2 or name $3. It reads at most about
`UNJOINED_MAX` rows, whatever the size of the fleet."""


def _upsert(table: str, key: str, columns: Sequence[str]) -> str:
    names, values = ", ".join(columns), ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    overwritten = ", ".join(f"{column} = excluded.{column}" for column in columns if column != key)
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {overwritten}"  # noqa: S608 - constants only


PUT_MODEL: Final = _upsert("models", "name", MODEL_COLUMNS)
PUT_NODE: Final = _upsert("nodes", "id", NODE_COLUMNS)
PUT_REPLICA: Final = _upsert("replicas", "id", REPLICA_COLUMNS)
DELETE_MODELS: Final = "DELETE FROM models WHERE name = ANY($1::text[])"
DELETE_REPLICAS: Final = "DELETE FROM replicas WHERE id = ANY($1::text[])"
DELETE_NODES: Final = "DELETE FROM nodes WHERE id = ANY($1::text[])"

PUT_LEADER_TERM: Final = (
    "UPDATE leadership SET gateway_id = $1, epoch = $2, expires_at = $3 WHERE expires_at = $4 RETURNING epoch"
)
"""The statement that makes a gateway the leader. $4 is the end of term that was read before: a leader may have
renewed its term since, which takes no lock on the counter."""
RENEW_TERM: Final = f"UPDATE leadership SET expires_at = {now(1)} + $2 WHERE gateway_id = $3 RETURNING epoch"  # noqa: S608 - constants only
END_TERM: Final = "UPDATE leadership SET expires_at = 0 WHERE gateway_id = $1"

EVENT_COLUMNS: Final = ("at", "kind", "subject", "detail", "epoch")
BUMP: Final = f"""
WITH told AS (
    INSERT INTO events ({", ".join(EVENT_COLUMNS)})
    SELECT * FROM unnest($1::float8[], $2::text[], $3::text[], $4::text[], $5::bigint[])
), trimmed AS (
    DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - {EVENTS_KEPT}
), bumped AS (
    UPDATE state_version SET version = version + 1 RETURNING version
)
SELECT version, pg_notify('{CHANNEL}', version::text) FROM bumped
"""  # noqa: S608 - constants only
READ_EVENTS: Final = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events ORDER BY id DESC LIMIT $1"  # noqa: S608 - constants only

LEAVE: Final = "DELETE FROM gateways WHERE id = $1"
FORGET_DEAD: Final = f"""
DELETE FROM gateways WHERE id IN (
    SELECT id FROM gateways WHERE expires_at < {now(1)} - $2 FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608 - constants only

END_STOPPED: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'gateway' AND pg_has_role(usesysid, 'MEMBER')
    AND state = 'active' AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - make_interval(secs => $1)
"""
"""The statement that ends connections whose gateway has been stopped for $1 seconds between the two messages of a
statement with parameters. The server considers such a connection busy, and none of its own timeouts ends it."""


def _exchange() -> str:
    """Returns the statement that stores this gateway's peer state and reads those of the peers.

    $1 is the time, $2 this gateway's id and $3 the time to live. Then follow its `PLAIN_COLUMNS`, its `TEXT_COLUMNS`
    and their hashes (NULL means unchanged). The last are the ids of the peers whose texts are known here, and the
    hashes of those texts, one array for each column.

    A statement that stays prepared locks its tables in the order of the outer FROM, so `state_version` comes first
    there (see the module `schema`).
    """
    first_plain = 4
    first_text = first_plain + len(PLAIN_COLUMNS)
    first_hash = first_text + len(TEXT_COLUMNS)
    known = first_hash + len(HASH_COLUMNS)
    plain = [f"${first_plain + index}" for index in range(len(PLAIN_COLUMNS))]
    texts = [f"coalesce(${first_text + index}::json, '{{}}')" for index in range(len(TEXT_COLUMNS))]
    hashes = [f"coalesce(${first_hash + index}::bigint, 0)" for index in range(len(HASH_COLUMNS))]
    kept = [
        *(f"{column} = excluded.{column}" for column in ("expires_at", *PLAIN_COLUMNS)),
        *(
            f"{column} = coalesce(${first_text + index}, mine.{column})"
            for index, column in enumerate((*TEXT_COLUMNS, *HASH_COLUMNS))
        ),
    ]
    columns = ("id", "expires_at", *PLAIN_COLUMNS, *TEXT_COLUMNS, *HASH_COLUMNS)
    known_hashes = "".join(f", ${known + 1 + index}::bigint[]" for index in range(len(HASH_COLUMNS)))
    peer_states = [
        *(f"other.{column}" for column in (*PLAIN_COLUMNS, *HASH_COLUMNS)),
        *(
            f"CASE WHEN other.{column}_hash IS DISTINCT FROM known.{column}_hash THEN other.{column} END AS {column}"
            for column in TEXT_COLUMNS
        ),
    ]
    return f"""
WITH counter AS (SELECT version, {now(1)} AS now FROM state_version),
said AS (
    INSERT INTO gateways AS mine ({", ".join(columns)})
    SELECT $2, now + $3, {", ".join([*plain, *texts, *hashes])} FROM counter
    ON CONFLICT (id) DO UPDATE SET {", ".join(kept)}
    RETURNING {", ".join(f"{column} AS said_{column}" for column in HASH_COLUMNS)}
)
SELECT counter.version, counter.now, said.*, other.id, other.expires_at > counter.now AS lives, {", ".join(peer_states)}
FROM state_version AS gate CROSS JOIN counter CROSS JOIN said
LEFT JOIN gateways AS other ON other.id <> $2 AND other.expires_at > counter.now - {SILENT_SECONDS_MAX}
LEFT JOIN unnest(${known}::text[]{known_hashes}) AS known (id, {", ".join(HASH_COLUMNS)}) ON known.id = other.id
"""  # noqa: S608 - constants only


EXCHANGE: Final = _exchange()
