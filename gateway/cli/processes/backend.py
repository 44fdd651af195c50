"""`gateway backend NAME`: runs one of our own backend programs in this process."""

import argparse


def backend(arguments: argparse.Namespace) -> int:
    """Runs the named backend until a signal ends it. Returns the exit code if it could not start."""
    from gateway.engines.llama_cpp.main import main

    return main(arguments.addr)
