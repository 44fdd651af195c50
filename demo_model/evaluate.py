"""Measures the demo model in llama.cpp: `python -m demo_model.evaluate MODEL.gguf`; exit 1 when a minimum is missed.

A reply counts as right only when it is the whole sentence that was to be said, and nothing else.
"""

import argparse
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from demo_model import tools
from demo_model.chat_format import END, NO_THINKING, system_block, user_turn
from demo_model.llama import PARALLEL, Json, Llama, assistant, user
from demo_model.measures import (
    LATER_TURNS_MIN,
    Measure,
    all_measures,
    as_history,
    conversation_pairs,
    no_thinking,
)
from demo_model.questions import Entry, load_entries

SEED: Final = 11
CONVERSATIONS: Final = 120
TURNS: Final = 8
SIZE_MAX_BYTES: Final = 4_000_000
SAMPLE: Final = (
    "hi", "What is a replica?", "and a lease?", "How can I add another machine to it?", "what if a backend dies",
    "A replica has 8 slots and 3 leases. How many are free?", "can you write a poem about rain", "i get no_node",
    "is it free", "thx",
)  # fmt: skip


class Row(NamedTuple):
    name: str
    right: int
    total: int
    minimum: float | None

    @property
    def missed(self) -> bool:
        return self.minimum is not None and self.right < self.minimum * self.total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo_model.evaluate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--misses", type=int, default=0, metavar="N", help="show so many wrong replies of each measure")
    arguments = parser.parse_args()
    entries = load_entries()
    llama = Llama(arguments.model)
    rows = [Row("file within 4 MB", int(arguments.model.stat().st_size <= SIZE_MAX_BYTES), 1, 1.0)]
    rows.append(_template_row(llama))
    rows += [_row(llama, measure, arguments.misses) for measure in all_measures(entries, random.Random(SEED))]
    rows += _conversation_rows(llama, entries)
    for row in rows:
        _print(row)
    _print_sample(llama)
    return int(any(row.missed for row in rows))


def _row(llama: Llama, measure: Measure, misses: int) -> Row:
    replies = llama.chat_all((case.messages, case.options) for case in measure.cases)
    wrong = [(case, reply) for case, reply in zip(measure.cases, replies, strict=True) if not case.right(reply)]
    for case, reply in wrong[:misses]:
        print(f"  {measure.name}: {case.messages[-1]['content']!r} -> {reply}")
    return Row(measure.name, len(replies) - len(wrong), len(replies), measure.minimum)


def _template_row(llama: Llama) -> Row:
    """Training and template must agree to the letter, or all rates below are of another model than the trained one."""
    offered = [tools.documented(name) for name in tools.KNOWN]
    system_prompt = "It's <b> & so on."
    system: Json = {"role": "system", "content": system_prompt}
    first, second = user_turn("a"), user_turn("c")
    texts = [
        (llama.prompt([user("a")]), first),
        (llama.prompt([user("a")], **no_thinking()), first + NO_THINKING),
        (llama.prompt([user("a"), assistant("b"), user("c")]), f"{first}b{END}\n{second}"),
        (llama.prompt([system, user("a")]), system_block(system_prompt, []) + first),
        (llama.prompt([user("a")], tools=offered), system_block("", offered) + first),
        (llama.prompt([system, user("a")], tools=offered), system_block(system_prompt, offered) + first),
    ]
    return Row("chat template as in training", sum(one == other for one, other in texts), len(texts), 1.0)


def _conversation_rows(llama: Llama, entries: list[Entry]) -> list[Row]:
    """Live conversations: what the model said before is what it sees, wrong or right."""
    rng = random.Random(SEED)
    scripts = [conversation_pairs(entries, rng, TURNS) for _ in range(CONVERSATIONS)]

    def run(number: int) -> list[bool]:
        history: list[Json] = []
        right = []
        for pair in scripts[number]:
            reply = llama.chat([*history, user(pair.question)])
            right.append(reply.content == pair.answer)
            history += as_history(pair, reply)
        return right

    with ThreadPoolExecutor(PARALLEL) as threads:
        results = list(threads.map(run, range(CONVERSATIONS)))
    second = sum(right[1] for right in results)
    later = sum(sum(right[2:]) for right in results)
    return [
        Row("conversations, turn 2", second, CONVERSATIONS, LATER_TURNS_MIN),
        Row(f"conversations, turns 3-{TURNS}", later, CONVERSATIONS * (TURNS - 2), LATER_TURNS_MIN),
    ]


def _print(row: Row) -> None:
    minimum = "" if row.minimum is None else f"  at least {row.minimum:.0%}"
    verdict = "  MISSED" if row.missed else ""
    print(f"{row.name:<44} {row.right:>5} of {row.total:<5} {row.right / row.total:>6.1%}{minimum}{verdict}")


def _print_sample(llama: Llama) -> None:
    history: list[Json] = []
    for question in SAMPLE:
        reply = llama.chat([*history, user(question)])
        thought = f"({reply.reasoning}) " if reply.reasoning else ""
        print(f"\n> {question}\n  {thought}{reply.content}")
        history += [user(question), assistant(reply.content)]


if __name__ == "__main__":
    sys.exit(main())
