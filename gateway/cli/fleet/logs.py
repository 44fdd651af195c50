"""`gateway logs`: prints the output of a replica's backend process, once or continuously."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.outcome import FAILED, OK, USAGE, print_error


def logs(arguments: argparse.Namespace) -> int:
    """Prints the output of a replica's backend process, and follows it if asked to. Returns the exit code."""
    if arguments.lines < 1:
        print_error("-n has to be at least 1")
        return USAGE
    client = ApiClient(arguments)
    try:
        replica_id = find_replica(client.get("/api/replicas")["replicas"], arguments.replica)
        path = f"/api/replicas/{quote(replica_id, safe='')}/logs?lines={arguments.lines}"
        if arguments.follow:
            _follow(client, f"{path}&follow=true")
        else:
            sys.stdout.write(client.get_text(path))
    except ApiError as error:
        print_error(str(error))
        return FAILED
    return OK


def find_replica(replicas: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """Returns the id of the replica that `wanted` names. Pure. Raises `ApiError` if there is none, or more than one."""
    ids: list[str] = [replica["id"] for replica in replicas if wanted in {replica["id"], replica["model"]}]
    if wanted in ids:
        return wanted
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise ApiError(f"no replica has the id '{wanted}', and no model of that name has one")
    raise ApiError(f"'{wanted}' has {len(ids)} replicas; name one of them: {', '.join(ids)}")


def _follow(client: ApiClient, path: str) -> None:
    """Prints a replica's output as it comes, until the process is gone or the user presses Ctrl-C."""
    try:
        with closing(client.stream_events(path)) as events:
            for event in events:
                for line in _lines(event):
                    print(line, flush=True)
    except KeyboardInterrupt:
        return


def _lines(event: Mapping[str, Any]) -> Iterator[str]:
    if event["skipped"]:
        yield f"... {event['skipped']} lines left out ..."
    yield from event["lines"]
