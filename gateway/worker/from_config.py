"""What the configuration says to the worker, in the worker's own words; the same for an embedded and a remote one."""

from collections.abc import Mapping
from types import MappingProxyType

from gateway.config.model import Config
from gateway.config.units import Percent
from gateway.domain.capacity import ALL_VRAM, VramBudget
from gateway.worker.command import BackendProgram


def backend_programs(config: Config) -> Mapping[str, BackendProgram]:
    programs = {
        name: BackendProgram(section.command, section.env, section.ready_timeout, section.refuses_when_full)
        for name, section in config.backends.items()
    }
    return MappingProxyType(programs)


def vram_budget(config: Config) -> VramBudget:
    budget = config.worker.vram_budget
    if budget is None:
        return ALL_VRAM
    return VramBudget(share=budget.value / 100) if isinstance(budget, Percent) else VramBudget(amount=budget)
