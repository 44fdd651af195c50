"""The lines with which a gateway greets whoever has started it."""

from gateway import __version__
from gateway.config.model import Config


def greeting(config: Config, url: str) -> str:
    """Returns the lines that a person needs in the first minute: the address, the models and a first command."""
    models = [entry.name for entry in config.models]
    body = f'{{"model":"{models[0]}","messages":[{{"role":"user","content":"hello"}}],"stream":true}}' if models else ""
    lines = [f"gateway {__version__} listens on {url}", f"models: {', '.join(models) or 'none'}"]
    if models:
        lines.append(f"try: curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    return "\n".join(lines)
