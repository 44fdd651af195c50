"""Questions that are answered after a line of reasoning: small numbers, and what a sign of life proves.

The reasoning names the larger number first, whatever the order in the question: so it depends on which numbers there
are and not on where, which a network of this size learns soon.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SLOTS: Final = (2, 4, 8)
ADDEND_MAX: Final = 6
RELOADING: Final = ("backend", "artifact", "sha256", "context_size", "gpu_layers", "parallel", "options")
SCHEDULING: Final = ("min_replicas", "max_replicas", "replicas", "selector", "exclusive_group", "load_timeout")


@dataclass(frozen=True)
class Thought:
    questions: tuple[str, ...]
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Thinking:
    """One question of a thought."""

    question: str
    reasoning: str
    answer: str


def trained_thinking() -> list[list[Thinking]]:
    """The trained questions, grouped by kind, so that no kind drowns the others."""
    return [[item for item, held_out in _questions(kind) if not held_out] for kind in KINDS]


def held_out_thinking() -> list[Thinking]:
    """Every third thought misses one way of asking in training."""
    return [item for kind in KINDS for item, held_out in _questions(kind) if held_out]


def _questions(kind: list[Thought]) -> Iterator[tuple[Thinking, bool]]:
    for number, thought in enumerate(kind):
        held_out = 1 + number // 3 % (len(thought.questions) - 1) if number % 3 == 0 else None
        for index, question in enumerate(thought.questions):
            yield Thinking(question, thought.reasoning, thought.answer), index == held_out


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _are_free(number: int) -> str:
    return {0: "No slot is free.", 1: "1 slot is free."}.get(number, f"{number} slots are free.")


def _free_slots(slots: int, leases: int) -> Thought:
    has = f"{_count(slots, 'slot')} and {_count(leases, 'lease')}"
    return Thought(
        (
            f"A replica has {has}. How many slots are free?",
            f"How many of {_count(slots, 'slot')} are free when there are {_count(leases, 'lease')}?",
            f"{has}: how many are free?",
            f"There are {has}. How many free slots?",
            f"A replica has {has}. How many are free?",
        ),
        f"Each lease takes one slot. {slots} minus {leases} is {slots - leases}.",
        _are_free(slots - leases),
    )


def _another_request(slots: int, leases: int) -> Thought:
    has = f"{_count(slots, 'slot')} and {_count(leases, 'lease')}"
    free = slots - leases
    return Thought(
        (
            f"A replica has {has}. Can it take another request?",
            f"Can a replica with {has} take another request?",
            f"{has}: is there room for one more request?",
        ),
        f"Each lease takes one slot. {slots} minus {leases} is {free}.",
        f"Yes. {_are_free(free)}" if free else "No. The request waits in the queue.",
    )


def _waiting(slots: int, requests: int) -> Thought:
    waits = requests - slots
    return Thought(
        (
            f"A replica has {_count(slots, 'slot')} and gets {requests} requests. How many wait?",
            f"{requests} requests come and there is room for {slots}. How many wait?",
            f"{_count(slots, 'slot')}, {requests} requests: how many wait?",
        ),
        f"{slots} of {requests} get a slot. {requests} minus {slots} is {waits}.",
        "1 request waits." if waits == 1 else f"{waits} requests wait.",
    )


def _at_once(replicas: int, slots: int) -> Thought:
    has = f"{replicas} replicas with {_count(slots, 'slot')} each"
    return Thought(
        (
            f"There are {has}. How many requests run at once?",
            f"{has}: how many requests at once?",
            f"How many requests can {has} serve at once?",
        ),
        f"{max(replicas, slots)} times {min(replicas, slots)} is {replicas * slots}.",
        f"{replicas * slots} requests at once.",
    )


def _sum(first: int, second: int) -> Thought:
    return Thought(
        (
            f"What is {first} plus {second}?",
            f"{first} + {second}",
            f"How much is {first} plus {second}?",
            f"Add {first} and {second}.",
            f"What is {first} + {second}?",
            f"What is {first}+{second}?",
            f"{first}+{second}",
        ),
        f"{max(first, second)} and {min(first, second)} more is {first + second}.",
        f"It is {first + second}.",
    )


def _reloads(key: str) -> Thought:
    yes = key in RELOADING
    return Thought(
        (
            f"Does a change of {key} reload the model?",
            f"I change {key}. Is the model loaded again?",
            f"Is the revision another one when {key} changes?",
        ),
        f"{key} is seen by the backend, so it is in the revision."
        if yes
        else f"{key} is for the planner only, so it is not in the revision.",
        "Yes, the model is loaded again." if yes else "No, nothing is loaded again.",
    )


def _signs_of_life() -> list[Thought]:
    def asked(sign: str) -> tuple[str, ...]:
        return (
            f"{sign}. Is the replica dead?",
            f"{sign}. Is it dead?",
            f"{sign}. Does the replica live?",
            f"Is a replica dead when {sign[0].lower()}{sign[1:]}?",
        )

    return [
        Thought(asked("The probe was answered"), "Who answers is alive.", "It is alive."),
        Thought(asked("The probe was refused"), "Refused means that nobody listens there.", "It is gone."),
        Thought(
            asked("The probe timed out but the port accepts a connection"),
            "Somebody listens there and is only slow.",
            "It is busy, not dead.",
        ),
        Thought(
            asked("The probe timed out and the port does not answer"),
            "Nobody can tell from here: the network may be broken.",
            "It is unreachable from here, so it gets no requests.",
        ),
    ]


def _slots_and_leases() -> list[tuple[int, int]]:
    return [(slots, leases) for slots in SLOTS for leases in range(1, slots + 1)]


KINDS: Final[list[list[Thought]]] = [
    [_free_slots(slots, leases) for slots, leases in _slots_and_leases()],
    [_another_request(slots, leases) for slots, leases in _slots_and_leases()],
    [_waiting(slots, slots + more) for slots in SLOTS for more in (1, 2, 3)],
    [_at_once(replicas, slots) for replicas in (2, 3, 4) for slots in SLOTS],
    [_sum(first, second) for first in range(1, ADDEND_MAX + 1) for second in range(1, ADDEND_MAX + 1)],
    [_reloads(key) for key in RELOADING + SCHEDULING],
    _signs_of_life(),
]
