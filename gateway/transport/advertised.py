"""Checks the addresses of one worker's replicas: they have to be on the host that the worker advertises.

A worker that joins a fleet must not be able to have its gateways call other machines, or programs on their own machine.
Pure, except that it remembers the host of a worker that does not say which one it advertises.
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
    """The host on which the replicas of one worker may be. `peer` is the host from which its session comes."""

    host: str | None
    """The host, or None for an older worker that does not send it. Then the first host that it names counts."""
    peer: str

    @classmethod
    def of_hello(cls, hello: Hello, peer: str) -> "AdvertisedHost":
        """Returns the host of a hello. Raises `MessageRefused` if it may not be advertised from `peer`."""
        if hello.advertise is None:
            return cls(None, peer)
        try:
            return cls(_allowed(check_host(hello.advertise), peer), peer)
        except ValueError as error:
            raise MessageRefused(f"Hello.advertise: {error}; set worker.advertise") from None

    def checked(self, report: Report) -> Report:
        """Returns the report, or if its address is not allowed, a report that the replica failed and why."""
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
    """Returns a report that the replica failed because its worker sent an impossible report. Nothing else of `report`
    counts."""
    return Report(report.replica_id, Observed.FAILED, error=f"its worker reports what can't be: {why}")


def checked_hello(hello: Hello, advertised: AdvertisedHost) -> Hello:
    """Returns the hello with its reports checked."""
    return replace(hello, replicas=tuple(map(advertised.checked, hello.replicas)))


def _allowed(host: str, peer: str) -> str:
    """Returns the host if it may be advertised from `peer`. Raises `ValueError`."""
    if is_loopback(host) and not is_loopback(peer):
        raise ValueError(f"{host} {LOOPBACK_ONLY_THERE}, and this one comes from {peer}")
    return host
