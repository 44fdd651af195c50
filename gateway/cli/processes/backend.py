"""`gateway backend NAME`: one of our own backend programs in this process."""

import argparse


def backend(arguments: argparse.Namespace) -> int:
    """Runs the named backend until it is told to stop. Returns the exit code if it could not start."""
    from gateway.engines.llama_cpp.main import main

    return main(arguments.addr)
