"""Shows the decision about one request, from the memory of the gateway that served it, whichever gateway is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import to_json

from gateway.api.admin.peer_client import PeerClient
from gateway.api.http.auth import Caller, Role
from gateway.api.http.exchange import Exchange
from gateway.api.http.http_app import Route
from gateway.domain.errors import NotFound
from gateway.domain.ids import RequestId
from gateway.domain.texts import quoted
from gateway.routing.decisions import DecisionLog, describe


@dataclass(frozen=True)
class Decisions:
    """Shows how the router decided on one recent request, whichever gateway served it."""

    log: DecisionLog
    """The decisions about requests that this gateway served."""
    peers: PeerClient

    def routes(self) -> Sequence[Route]:
        """Returns the route of `/api/decisions/{request_id}`, which asks for the admin role."""
        return (Route("GET", "/api/decisions/{request_id}", Role.ADMIN, self._show),)

    async def _show(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        request_id = exchange.params["request_id"]
        found = self.log.find(RequestId(request_id))
        if found is not None:
            await exchange.respond(200, to_json(describe(found)))
        elif not await self.peers.relay_from_any(exchange):
            raise NotFound(f"No recent decision has the request id '{quoted(request_id)}'; only the newest are kept.")
