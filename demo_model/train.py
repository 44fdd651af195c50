"""Trains the demo model on the CPU and writes it as a GGUF file: `python -m demo_model.train OUT.gguf [--steps N]`."""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from demo_model import questions
from demo_model.conversations import Conversations
from demo_model.gguf_file import write_gguf
from demo_model.network import Network, Shape
from demo_model.tokenizer import Encoded, encode_segments, train_tokenizer

SEED: Final = 7
THREADS: Final = 2
"""Fixed too: sums are split among the threads, and their last digits depend on how."""
STEPS: Final = 2400
"""Fixed, unlike a time, so that a slow machine makes the same model as a fast one."""
BATCH_TOKENS: Final = 3072
POOL: Final = 160
"""Conversations that are sorted by length before they are cut into batches, so that few places stay empty."""
LENGTH_MAX: Final = 1280
LEARNING_RATE: Final = 3e-3
WARM_UP_STEPS: Final = 60
FALL_SHARE: Final = 0.4
"""In this last part of the steps the learning rate falls to nothing."""
WEIGHT_DECAY: Final = 0.05
GRADIENT_MAX: Final = 1.0
REPORT_STEPS: Final = 25


class Batch(NamedTuple):
    tokens: Tensor
    """Rows x length."""
    targets: Tensor
    """The token after each."""
    weights: Tensor
    """How much each target matters; 0 where nothing is to be learned."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo_model.train", description=__doc__)
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    entries = questions.load_entries()
    conversations = Conversations(entries, random.Random(SEED))
    tokenizer = train_tokenizer(entries, conversations)
    network = Network(Shape(vocabulary=tokenizer.get_vocab_size()))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(entries)} answers, "
          f"{len(questions.trained_pairs(entries)):,} questions", flush=True)  # fmt: skip
    train(network, batches(conversations, tokenizer, random.Random(SEED)), arguments.steps)
    write_gguf(arguments.out, network, tokenizer)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def train(network: Network, source: Iterator[Batch], steps: int) -> None:
    optimizers = _optimizers(network)
    started, losses, tokens = time.monotonic(), [], 0
    for step in range(steps):
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        batch = next(source)
        losses.append(_step(network, optimizers, batch))
        tokens += batch.tokens.numel()
        if (step + 1) % REPORT_STEPS == 0:
            passed = time.monotonic() - started
            loss = sum(losses[-REPORT_STEPS:]) / REPORT_STEPS
            print(f"{passed:5.0f} s  step {step + 1}  loss {loss:.4f}  {tokens / passed:.0f} tokens/s", flush=True)


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short climb, a level stretch, a long fall."""
    return min((step + 1) / WARM_UP_STEPS, 1.0, (steps - step) / (FALL_SHARE * steps))


def batches(conversations: Conversations, tokenizer: Tokenizer, rng: random.Random) -> Iterator[Batch]:
    """For ever; each of about BATCH_TOKENS tokens in rows of similar length."""
    while True:
        rows = [encode_segments(tokenizer, conversations.sample(), LENGTH_MAX) for _ in range(POOL)]
        cut = _cut(sorted(rows, key=lambda row: len(row.tokens)))
        rng.shuffle(cut)
        yield from (_batch(part) for part in cut)


def _cut(rows: list[Encoded]) -> list[list[Encoded]]:
    """Rows, shortest first, in parts that fill BATCH_TOKENS when each is padded to its longest row."""
    parts: list[list[Encoded]] = [[]]
    for row in rows:
        if (len(parts[-1]) + 1) * len(row.tokens) > BATCH_TOKENS:
            parts.append([])
        parts[-1].append(row)
    return parts


def _batch(rows: list[Encoded]) -> Batch:
    size = len(rows), max(len(row.tokens) for row in rows) - 1
    batch = Batch(torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long), torch.zeros(size))
    for index, row in enumerate(rows):
        length = len(row.tokens) - 1
        ids = torch.tensor(row.tokens)
        batch.tokens[index, :length] = ids[:-1]
        batch.targets[index, :length] = ids[1:]
        batch.weights[index, :length] = torch.tensor(row.weights[1:])
    return batch


def _optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers: it needs about a third fewer steps here than AdamW, which does the rest."""
    inner = [p for name, p in network.named_parameters() if p.dim() == 2 and name.startswith("blk.")]
    others = [p for name, p in network.named_parameters() if p.dim() != 2 or not name.startswith("blk.")]
    return [
        torch.optim.Muon(inner, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _step(network: Network, optimizers: list[torch.optim.Optimizer], batch: Batch) -> float:
    wanted = batch.weights > 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(batch.tokens, wanted)
    losses = functional.cross_entropy(logits.float(), batch.targets[wanted], reduction="none")
    weights = batch.weights[wanted]
    loss = (losses * weights).sum() / weights.sum()
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_MAX)
    for optimizer in optimizers:
        optimizer.step()
    value: float = loss.item()
    return value


if __name__ == "__main__":
    main()
