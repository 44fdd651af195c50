"""Turns a TOML document into its usable part: each table is checked by itself, and a refused value gets its default."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from gateway.config.fields import check_name
from gateway.config.messages import explain_errors, suggest, table_at
from gateway.config.model import DEFAULT_MODELS, BackendSection, Config, ModelEntry, Section
from gateway.config.problems import Loc
from gateway.config.units import kind

Refusal = tuple[Loc, str]
"""A place and what is wrong there."""
AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class PartialConfig:
    """The usable part of a document. None stands for a backend or a model of which too little is usable."""

    config: Config
    """The sections; its backends and models are not filled in."""
    backends: Mapping[str, BackendSection | None] | None
    """The `[backends]` section. None means that it was refused as a whole, so the names of the backends are unknown."""
    models: tuple[ModelEntry | None, ...]

    def known_models(self) -> Iterator[tuple[int, ModelEntry]]:
        """Yields the usable models, each with its index in the file's `[[models]]` array."""
        for index, model in enumerate(self.models):
            if model is not None:
                yield index, model


def read_partial(document: Mapping[str, Any]) -> tuple[PartialConfig, list[Refusal]]:
    """Returns the usable part of `document`, and a problem for each value that was refused."""
    refused: list[Refusal] = []
    sections: dict[str, Section | None] = {}
    for name, raw in document.items():
        if name not in Config.model_fields:
            refused.append(((name,), "unknown section" + suggest(name, Config.model_fields)))
        elif name not in {"backends", "models"}:
            sections[name] = _read_table(table_at((name,)), raw, (name,), refused)
    backends = _read_backends(document.get("backends", {}), refused)
    models = _read_models(document["models"], refused) if "models" in document else DEFAULT_MODELS
    return PartialConfig(Config.model_validate(sections), backends, models), refused


def _read_backends(raw: object, refused: list[Refusal]) -> dict[str, BackendSection | None] | None:
    if not isinstance(raw, dict):
        refused.append((("backends",), f"expected a table of tables, [backends.NAME], got {kind(raw)}"))
        return None
    for name in raw:
        try:
            check_name(name)
        except ValueError as error:
            refused.append((("backends", name), str(error)))
    return {name: _read_table(BackendSection, table, ("backends", name), refused) for name, table in raw.items()}


def _read_models(raw: object, refused: list[Refusal]) -> tuple[ModelEntry | None, ...]:
    if not isinstance(raw, list):
        refused.append((("models",), f"expected an array of tables, [[models]], got {kind(raw)}"))
        return ()
    return tuple(_read_table(ModelEntry, table, ("models", index), refused) for index, table in enumerate(raw))


def _read_table(model: type[AnySection], raw: object, at: Loc, refused: list[Refusal]) -> AnySection | None:
    """Returns the table without the keys that were refused, or None if a refused key has no default."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        refused += ((each.loc, each.message) for each in explain_errors(error, at))
        bad = {detail["loc"][:1] for detail in error.errors(include_url=False, include_input=False)}
    usable = {key: value for key, value in raw.items() if (key,) not in bad} if isinstance(raw, dict) else {}
    try:
        return model.model_validate(usable)
    except ValidationError:
        return None
