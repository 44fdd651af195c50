"""Reads the settings of a chat template: `chat_template_kwargs`, an extension that other servers share, and
`reasoning_effort`.

The backend knows the template, and refuses a setting that it does not read. `enable_thinking` has no effect on a model
that cannot reason.
"""

from typing import Annotated, Any, Final

from pydantic import AfterValidator
from pydantic_core import to_json

from gateway.api.http.json_body import wrong_type, wrong_value

THINKING: Final = "enable_thinking"
NO_EFFORT: Final = "none"
SETTINGS_BYTES_MAX: Final = 64 * 1024


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that are set. Null means "not set" for each."""
    if not isinstance(thinking := settings.get(THINKING), bool | None):
        raise wrong_type("a boolean", thinking, THINKING)
    if len(to_json(settings)) > SETTINGS_BYTES_MAX:
        raise wrong_value(f"have at most {SETTINGS_BYTES_MAX} bytes of JSON")
    return {name: value for name, value in settings.items() if value is not None}


TemplateSettings = Annotated[dict[str, Any], AfterValidator(_checked)]


def thinking_of(thinking: bool | None, effort: str | None) -> tuple[bool | None, str | None]:
    """Returns whether the model should reason, and how much. No effort switches the reasoning off, unless the setting
    of the template says otherwise."""
    if effort == NO_EFFORT:
        return (False if thinking is None else thinking), None
    return thinking, effort
