"""An inference gateway: HTTP calls in, models on any number of machines behind it."""

from importlib.metadata import version

__version__ = version("gateway")
