"""An inference gateway: HTTP calls in, models on any number of machines behind it.

In reading order, from the vocabulary to the program; each room imports only from those above it:

domain          the records and rules that every room speaks of
concurrency     a wake-up for loops
bridge          the border between Trio and asyncio
private_files   files that only their owner may read
frame_meter     what a peer may send over HTTP/2
field_errors    the errors of pydantic, sorted
observability   logs and metrics
config          the configuration, checked
data_dir        what one gateway keeps on disk beside the registry
process_place   what one of several processes on a machine knows of the others
gguf            what a model file says about itself, and how much memory it takes
json_grammar    from a JSON schema to a grammar of its texts
planner         from the state of the fleet to what should change
registry        where the state of the fleet is stored
backends        the client side of backend.proto
routing         one request's way to a replica
transport       what joins a worker on another machine to a gateway
control         the loops that keep the fleet as it is wanted
engines         backend programs of our own
worker          the agent of one machine
api             HTTP: the listener, OpenAI's dialect, the admin API
composition     makes all parts of a program and connects them
supervisor      keeps several processes of one gateway running
cli             the program `gateway`

docs/ARCHITECTURE.md is the map.
"""

from importlib.metadata import version

__version__ = version("gateway")
