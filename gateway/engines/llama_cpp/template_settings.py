"""Reads the settings of a chat template from a request. Pure."""

import re
from collections.abc import Mapping
from typing import Final

from gateway.backends.metadata import EFFORT_KEY, TEMPLATE_KEY
from gateway.engines.llama_cpp.errors import invalid
from gateway.engines.llama_cpp.sampling import Body, SamplingLimits, parse_json

TEMPLATE_SETTINGS: Final = "chat_template_kwargs"
OF_THE_REQUEST: Final = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""The names that a template reads and that no setting may change: they have parameters of their own, or are fixed."""

_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def names_in(template: str) -> frozenset[str]:
    """Returns the names that a template may read."""
    return frozenset(_NAME.findall(template)) - OF_THE_REQUEST


def template_settings(metadata: Mapping[str, str], limits: SamplingLimits) -> Body:
    """Returns the settings besides thinking. Raises `CallError` for one that the template does not read.

    The effort of reasoning is a wish, so a template that does not read it just does not get it.
    """
    settings: Body = {}
    if TEMPLATE_KEY in metadata:
        settings = parse_json(metadata[TEMPLATE_KEY], TEMPLATE_SETTINGS)
        if not isinstance(settings, dict):
            raise invalid(f"{TEMPLATE_SETTINGS} must be a JSON object", param=TEMPLATE_SETTINGS)
        for name in settings.keys() - limits.template_names:
            raise invalid(
                f"the chat template of this model reads no {name[:64]!r}", param=f"{TEMPLATE_SETTINGS}.{name}"
            )
    if EFFORT_KEY in metadata and EFFORT_KEY in limits.template_names:
        settings.setdefault(EFFORT_KEY, metadata[EFFORT_KEY])
    return settings
