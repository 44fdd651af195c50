"""Where the replicas of one worker may be said to listen: on the host that the worker advertises, and nowhere else.

Whoever joins a fleet must not be able to have its gateways call other machines, or programs of their own machine, in
his place. Pure, except that it remembers the host of a worker that does not say which one it advertises.
"""

from dataclasses import dataclass, replace
from typing import Final

from gateway.domain.host_port import check_host, is_loopback, is_same_host, split_address
from gateway.domain.lifecycle import Observed
from gateway.domain.session import Hello, Report
from gateway.transport.errors import MessageRefused

LOOPBACK_ONLY_THERE: Final = "is the loopback, where only a worker of the gateway's own machine can be reached"


@dataclass
class AdvertisedHost:
    """`peer`: the host from which the worker's session comes."""

    host: str | None
    """None: an older worker, which does not say it. Then the first one that it names counts."""
    peer: str

    @classmethod
    def of_hello(cls, hello: Hello, peer: str) -> "AdvertisedHost":
        """Raises `MessageRefused`."""
        if hello.advertise is None:
            return cls(None, peer)
        try:
            return cls(_allowed(check_host(hello.advertise), peer), peer)
        except ValueError as error:
            raise MessageRefused(f"Hello.advertise: {error}; set worker.advertise") from None

    def checked(self, report: Report) -> Report:
        """The report; if its replica can't be where it says, that it failed, and why."""
        if report.address is None:
            return report
        try:
            self._check(report.address)
        except ValueError as error:
            return refused_report(report, f"address: {error}")
        return report

    def _check(self, address: str) -> None:
        host = _allowed(split_address(address)[0], self.peer)
        if self.host is None:
            self.host = host
        if not is_same_host(host, self.host):
            raise ValueError(f"expected an address on {self.host}, which the worker advertises, got {address}")


def refused_report(report: Report, why: str) -> Report:
    """That a replica failed since its worker reports of it what can't be. Nothing else of the report counts."""
    return Report(report.replica_id, Observed.FAILED, error=f"its worker reports what can't be: {why}")


def checked_hello(hello: Hello, advertised: AdvertisedHost) -> Hello:
    """The hello with its reports checked."""
    return replace(hello, replicas=tuple(map(advertised.checked, hello.replicas)))


def _allowed(host: str, peer: str) -> str:
    """Raises `ValueError`."""
    if is_loopback(host) and not is_loopback(peer):
        raise ValueError(f"{host} {LOOPBACK_ONLY_THERE}, and this one comes from {peer}")
    return host
