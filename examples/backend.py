"""A backend that answers with the words of the last message. Usage: python3 backend.py --addr HOST:PORT.

A worker starts it, sets LOCALAI_GRPC_AUTH_TOKEN, and calls LoadModel once. docs/backend-protocol.md says what each call
means.
"""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

sys.path.append(str(Path(__file__).resolve().parents[1] / "proto"))  # where the next line finds the file
pb, services = grpc.protos_and_services("backend.proto")

TOKEN = "Bearer " + os.environ.get("LOCALAI_GRPC_AUTH_TOKEN", "")
REFUSE = grpc.unary_unary_rpc_method_handler(lambda _, call: call.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token"))


class RequireToken(grpc.ServerInterceptor):
    def intercept_service(self, continuation, call):
        return continuation(call) if ("authorization", TOKEN) in call.invocation_metadata else REFUSE


class Echo(services.BackendServicer):
    def Health(self, request, call):
        return pb.Reply(message=b"OK")

    def LoadModel(self, request, call):
        self.model = request.Model  # a real backend loads request.ModelFile here
        return pb.Result(success=True)

    def PredictStream(self, request, call):
        if request.ModelIdentity != self.model:
            call.abort(grpc.StatusCode.NOT_FOUND, "model identity mismatch")
        words = request.Messages[-1].content.split() if request.Messages else request.Prompt.split()
        for number, word in enumerate(words, 1):
            yield pb.Reply(message=f"{word} ".encode(), tokens=number, prompt_tokens=len(words))

    def Predict(self, request, call):
        replies = list(self.PredictStream(request, call))
        text = b"".join(reply.message for reply in replies)
        return pb.Reply(message=text, tokens=len(replies), prompt_tokens=len(replies))


if __name__ == "__main__":
    limits = [("grpc.max_receive_message_length", 50 * 1024 * 1024)]
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[RequireToken()], options=limits)
    services.add_BackendServicer_to_server(Echo(), server)
    server.add_insecure_port(sys.argv[sys.argv.index("--addr") + 1])
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=30))
    server.wait_for_termination()
