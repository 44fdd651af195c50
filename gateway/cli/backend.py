"""`gateway backend NAME`: one of our own backend programs in this process."""

import argparse


def backend(arguments: argparse.Namespace) -> int:
    from gateway.engines.llama_cpp.main import main

    return main(arguments.addr)
