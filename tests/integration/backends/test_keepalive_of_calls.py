"""The connections of inference calls end by themselves, too, when their other machine is not there any more."""

import socket

import trio

from gateway.backends.grpc.transport import SocketTransport, connect
from gateway.domain.ids import Address
from tests.integration.backends.test_keepalive import OPTIONS


async def test_the_kernel_asks_whether_the_other_machine_is_there() -> None:
    with trio.fail_after(30):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            transport = await connect(Address(f"127.0.0.1:{listener.socket.getsockname()[1]}"))
            assert isinstance(transport, SocketTransport)
            try:
                options = {option: transport._socket.getsockopt(*option) for option in OPTIONS}
                assert options == OPTIONS
                assert transport._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            finally:
                transport.close()
