"""`gateway status`: prints the fleet as tables."""

import argparse
import json

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.fleet.status_tables import TABLES, tables
from gateway.cli.outcome import FAILED, OK, print_error
from gateway.cli.table import print_table


def status(arguments: argparse.Namespace) -> int:
    """Prints the gateways, nodes, models and replicas of the fleet as tables or as JSON. Returns the exit code."""
    try:
        document = ApiClient(arguments).get("/api/status")
    except ApiError as error:
        print_error(str(error))
        return FAILED
    if arguments.json:
        print(json.dumps(document, indent=2))
        return OK
    rows = tables(document)
    for index, (name, columns) in enumerate(TABLES.items()):
        if index:
            print()
        print_table(name, columns, rows[name])
    return OK
