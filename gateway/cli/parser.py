"""The arguments of every command. A command's module is named here and imported only when the command runs."""

import argparse
from pathlib import Path

from gateway import __version__


def build_parser() -> argparse.ArgumentParser:
    """Builds the argument parser of the `gateway` program; its result names the command's function in `run`."""
    parser = argparse.ArgumentParser(prog="gateway", description="An inference gateway for models of your own.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_worker(commands)
    _add_check_config(commands)
    _add_status(commands)
    _add_models(commands)
    _add_nodes(commands)
    _add_logs(commands)
    _add_chat(commands)
    _add_explain(commands)
    _add_estimate(commands)
    _add_migrate(commands)
    _add_backend(commands)
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def _add_serve(commands: "Commands[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="run the gateway (the default command)")
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help="default: config.toml in this folder, if there is one"
    )
    serve.add_argument("--host", help="address to listen on; overrides server.host")
    serve.add_argument("--port", type=int, help="port to listen on; overrides server.port")
    serve.add_argument(
        "--processes", type=_count, metavar="N", help="keep N processes running, which share the port (SIGHUP reloads)"
    )
    serve.add_argument("--as-process", help=argparse.SUPPRESS)  # for the supervisor
    serve.set_defaults(run="gateway.cli.processes.serve:serve")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _add_worker(commands: "Commands[argparse.ArgumentParser]") -> None:
    worker = commands.add_parser("worker", help="run models on this machine for a gateway on another one")
    worker.add_argument(
        "--join", required=True, metavar="URL[,URL]", help="gateways of the fleet, any one of which will do"
    )
    worker.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the join token; default: the variable GATEWAY_JOIN_TOKEN"
    )
    worker.add_argument("--config", type=Path, metavar="FILE", help="default: as for serve")
    worker.add_argument("--name", help="of the node; overrides worker.name (default: the host name)")
    worker.add_argument(
        "--advertise", metavar="HOST", help="host at which gateways can reach this machine; overrides worker.advertise"
    )
    worker.set_defaults(run="gateway.cli.processes.worker:worker")


def _add_check_config(commands: "Commands[argparse.ArgumentParser]") -> None:
    check = commands.add_parser("check-config", help="report every problem of a configuration")
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: as for serve")
    check.set_defaults(run="gateway.cli.setup.check_config:check_config")


def _add_status(commands: "Commands[argparse.ArgumentParser]") -> None:
    status = commands.add_parser("status", help="show the gateways, nodes, models and replicas of a running fleet")
    status.add_argument("--json", action="store_true", help="as the API returns it")
    _add_connection(status)
    status.set_defaults(run="gateway.cli.fleet.status:status")


def _add_models(commands: "Commands[argparse.ArgumentParser]") -> None:
    models = commands.add_parser("models", help="list, load, unload and change the models of a running gateway")
    actions = models.add_subparsers(metavar="ACTION", dest="action", required=True)
    each = {
        "list": "show all of them",
        "status": "show how a model's load goes",
        "load": "load a model, and wait until it serves",
        "unload": "let a model finish what it has and free its memory",
        "set": "add a model, or change one that was added like this",
        "remove": "forget a model that was added like this",
    }
    for name, text in each.items():
        action = actions.add_parser(name, help=text)
        if name != "list":
            action.add_argument("model", metavar="NAME")
        if name == "load":
            action.add_argument(
                "--wait", action=argparse.BooleanOptionalAction, default=True, help="until it serves or has failed"
            )
        if name == "set":
            action.add_argument("--file", metavar="FILE", help="TOML with the keys of a [[models]] entry; - is stdin")
            action.add_argument("values", nargs="*", metavar="KEY=VALUE", help="such as context_size=4096; KEY= unsets")
        _add_connection(action)
        action.set_defaults(run="gateway.cli.models.models:models")


def _add_nodes(commands: "Commands[argparse.ArgumentParser]") -> None:
    nodes = commands.add_parser("nodes", help="list the machines of a running gateway, and administer them")
    actions = nodes.add_subparsers(metavar="ACTION", dest="action", required=True)
    each = {
        "list": "show all of them",
        "approve": "let a new node serve",
        "drain": "let a node finish what it has and give it nothing new",
        "resume": "take the drain back",
        "remove": "forget a node that is gone",
    }
    for name, text in each.items():
        action = actions.add_parser(name, help=text)
        if name != "list":
            action.add_argument("node", metavar="NAME", help="name or id of the node")
        if name == "remove":
            action.add_argument("--force", action="store_true", help="even if its worker is still there")
        _add_connection(action)
        action.set_defaults(run="gateway.cli.fleet.nodes:nodes")


def _add_logs(commands: "Commands[argparse.ArgumentParser]") -> None:
    logs = commands.add_parser("logs", help="show the output of a replica's backend process")
    logs.add_argument("replica", metavar="REPLICA_OR_MODEL", help="id of the replica, or a model that has just one")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=100, metavar="LINES", help="how many to begin with (100)")
    _add_connection(logs)
    logs.set_defaults(run="gateway.cli.fleet.logs:logs")


def _add_chat(commands: "Commands[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser("chat", help="talk to a model of a running gateway")
    chat.add_argument("model", nargs="?", help="default: demo, or the first model there is")
    _add_connection(chat)
    chat.set_defaults(run="gateway.cli.requests.chat:chat")


def _add_explain(commands: "Commands[argparse.ArgumentParser]") -> None:
    explain = commands.add_parser("explain", help="show what the router would do, or did with one request")
    explain.add_argument("model", nargs="?", help="what a request for it would get now")
    explain.add_argument("--request", metavar="ID", help="what this request got (the X-Request-Id of its response)")
    _add_connection(explain)
    explain.set_defaults(run="gateway.cli.requests.explain:explain")


def _add_estimate(commands: "Commands[argparse.ArgumentParser]") -> None:
    estimate = commands.add_parser("estimate", help="tell how much memory a GGUF file takes once it is loaded")
    estimate.add_argument("file", type=Path, metavar="FILE", help="of a model in several parts, the first one")
    estimate.add_argument(
        "--context", type=int, metavar="TOKENS", help="context size per request, in tokens (default 4096)"
    )
    estimate.add_argument("--parallel", type=int, metavar="REQUESTS", help="at a time (4)")
    estimate.add_argument("--gpu-layers", type=int, metavar="LAYERS", help="that go to a GPU (all)")
    estimate.add_argument("--json", action="store_true", help="bytes instead of a table")
    estimate.set_defaults(run="gateway.cli.models.estimate:estimate_command")


def _add_migrate(commands: "Commands[argparse.ArgumentParser]") -> None:
    migrate = commands.add_parser("migrate", help="bring the tables of a PostgreSQL registry up to date")
    migrate.add_argument("--config", type=Path, metavar="FILE", help="default: as for serve")
    migrate.set_defaults(run="gateway.cli.setup.migrate:migrate_command")


def _add_connection(command: argparse.ArgumentParser) -> None:
    """Adds the options with which a command finds its gateway."""
    command.add_argument("--url", help="of the gateway; default: GATEWAY_URL or http://127.0.0.1:8080")
    command.add_argument("--api-key", help="default: GATEWAY_API_KEY")


def _add_backend(commands: "Commands[argparse.ArgumentParser]") -> None:
    backend = commands.add_parser("backend", help="run one of our own backend programs, as a worker does")
    backend.add_argument("name", choices=["llama-cpp"])
    backend.add_argument("--addr", required=True, metavar="HOST:PORT", help="where to listen")
    backend.set_defaults(run="gateway.cli.processes.backend:backend")
