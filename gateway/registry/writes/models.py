"""The meaning of each write about a model: pure functions.

A model belongs to the configuration file or to the API (`ModelSpec.source`). Neither changes one of the other, except
that the file may take any name. The knowledge about a revision belongs to that revision: a new one may load where the
old one failed, and need more or less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, Literal

from gateway.domain.artifact import without_user
from gateway.domain.ids import ModelName, Revision
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.resources import UNKNOWN_REQUIREMENT, Requirement
from gateway.registry.protocol import DeclaredInFile
from gateway.registry.rows import storable
from gateway.registry.tables import ModelRow, Tables


def declared(tables: Tables, specs: Sequence[ModelSpec]) -> Tables:
    """Makes the models of the configuration file exactly `specs` (of two with one name, the later). Those of the API
    stay, without the passwords that older gateways have stored in their artifacts."""
    of_file = {spec.name: _storable_spec(spec, "file") for spec in specs}
    of_api = (row for row in tables.models.values() if row.spec.source != "file")
    models = {row.spec.name: _respecified(row, _storable_spec(row.spec, "api")) for row in of_api}
    models |= {name: _respecified(tables.models.get(name), spec) for name, spec in of_file.items()}
    unreadable = {
        name: source for name, source in tables.unreadable.items() if source != "file" and name not in of_file
    }
    return replace(tables, models=models, unreadable=unreadable)


def put(tables: Tables, spec: ModelSpec) -> Tables:
    """Adds or replaces a model of the API. Raises `DeclaredInFile`."""
    _refuse_file_model(tables, spec.name)
    row = _respecified(tables.models.get(spec.name), _storable_spec(spec, "api"))
    unreadable = {name: source for name, source in tables.unreadable.items() if name != spec.name}
    return replace(tables, models={**tables.models, spec.name: row}, unreadable=unreadable)


def removed(tables: Tables, name: ModelName) -> Tables | None:
    """Deletes a model. Returns None if there is no such model. Raises `DeclaredInFile`."""
    _refuse_file_model(tables, name)
    if name not in tables.models and name not in tables.unreadable:
        return None
    models = {key: row for key, row in tables.models.items() if key != name}
    return replace(tables, models=models, unreadable={k: v for k, v in tables.unreadable.items() if k != name})


def unloaded(tables: Tables, name: ModelName, now: float) -> Tables | None:
    """Records that an unload was requested at `now`. Returns None if there is no such model."""
    row = tables.models.get(name)
    return None if row is None else _with(tables, replace(row, unload_at=now))


def retried(tables: Tables, name: ModelName, now: float) -> Tables | None:
    """Ends the pause after a load failure at `now`. Returns None if no pause is left."""
    row = tables.models.get(name)
    if row is None or row.failure is None or row.failure.retry_at <= now:
        return None
    return _with(tables, replace(row, failure=replace(row.failure, retry_at=now)))


def requirement_recorded(
    tables: Tables, name: ModelName, revision: Revision, requirement: Requirement
) -> Tables | None:
    """Stores what a replica needs. Returns None if `revision` is not the current one, or if the stored value is
    better."""
    row = tables.models.get(name)
    if row is None or row.spec.revision != revision:
        return None
    known = row.requirement or UNKNOWN_REQUIREMENT
    if known.measured and not requirement.measured:
        return None
    changes = {field.name: getattr(requirement, field.name) for field in fields(Requirement)}
    known_changes = {name: value for name, value in changes.items() if value is not None}
    return _with(tables, replace(row, requirement=replace(known, **known_changes)))


def capabilities_recorded(
    tables: Tables, name: ModelName, revision: Revision, capabilities: Capabilities
) -> Tables | None:
    """Stores what the model can do. Returns None if `revision` is not the current one."""
    row = tables.models.get(name)
    if row is None or row.spec.revision != revision:
        return None
    return _with(tables, replace(row, capabilities=capabilities))


def _storable_spec(spec: ModelSpec, source: Literal["file", "api"]) -> ModelSpec:
    changes: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(ModelSpec)}
    texts = {name: storable(value) for name, value in changes.items() if isinstance(value, str)}
    mappings = {"options": _storable_texts(spec.options), "selector": _storable_texts(spec.selector)}
    return ModelSpec(**{**changes, **texts, **mappings, "source": source, "artifact": without_user(texts["artifact"])})


def _storable_texts(texts: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({storable(key): storable(value) for key, value in texts.items()})


def _respecified(old: ModelRow | None, spec: ModelSpec) -> ModelRow:
    if old is None:
        return ModelRow(spec)
    if old.spec.revision == spec.revision:
        return replace(old, spec=spec)
    return ModelRow(spec, unload_at=old.unload_at)


def _refuse_file_model(tables: Tables, name: ModelName) -> None:
    row = tables.models.get(name)
    source = tables.unreadable.get(name) if row is None else row.spec.source
    if source == "file":
        raise DeclaredInFile(f"the model {name!r} is declared in the configuration file; change it there")


def _with(tables: Tables, row: ModelRow) -> Tables:
    return replace(tables, models={**tables.models, row.spec.name: row})
