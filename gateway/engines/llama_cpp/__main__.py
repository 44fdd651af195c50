"""`python -m gateway.engines.llama_cpp --addr HOST:PORT`."""

import argparse
import sys

from gateway.engines.llama_cpp.main import main

parser = argparse.ArgumentParser(prog="gateway.engines.llama_cpp", description="The llama.cpp engine.")
parser.add_argument("--addr", required=True, metavar="HOST:PORT", help="where to listen; port 0 picks a free one")
sys.exit(main(parser.parse_args().addr))
