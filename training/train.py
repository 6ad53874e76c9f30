"""How was the bundled model made? One command trains it, or goes on with it after a kill.

    python -m training.train --corpus DIR --run DIR

Assumes the frozen tokenizer beside the bundled model and a CPU with bfloat16 products. The run
folder receives log.jsonl, the last two checkpoints (64 MB each), float16 snapshots at token counts
that double, plateau/ with the checkpoint from which the decay began, and, when the schedule is
through, final/ with the model in Hugging Face layout.

Schedule: linear warm-up, a plateau, and a linear decay to zero over the last part of `--tokens`.
Until the decay begins `--tokens` may be changed from one resumption to the next; everything else
that shapes the weights must stay. To train a finished model for longer, copy the plateau's
checkpoint into a new run folder and start there with more tokens. Windows grow from 64 to 128 to
256 tokens; every eighth step stays at 64, so that short prompts remain common.

A step's windows are shared out in parts of 2,048 tokens, each computed by one thread from start to
finish and added up in a fixed order: cores that other work slows down then cost only themselves,
where threads inside every product would wait for the slowest each time.

Deterministic by seed (a product may still round differently on another machine). Costs about 0.7 s
a step of 8,192 tokens on two free cores.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from . import optimizer
from .checkpoint import (
    Checkpoint,
    checkpoints,
    float16_file,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from .corpus import read_corpus, split
from .errors import CheckpointError, CorpusError, TrainingError
from .model import (
    Kernels,
    ModelConfig,
    Parameters,
    initial_parameters,
    keep_freed_memory,
    loss,
)
from .optimizer import OptimizerConfig
from .windows import Position, Windows, encode_books

#: Tokens that one thread takes through the model at a time.
PART_TOKENS = 2048
BUNDLED = Path(__file__).parents[1] / "src/casestudy/model/bundled/tiny"


@dataclass(frozen=True)
class Settings:
    """What one run is; a checkpoint made under other settings is refused."""

    model: ModelConfig
    optimizer: OptimizerConfig
    seed: int
    batch_tokens: int
    warmup_steps: int
    decay_fraction: float
    tokenizer: str  # SHA-256 of tokenizer.json
    corpus: str  # SHA-256 of the training books

    def stored(self) -> dict[str, Any]:
        """As JSON gives it back."""
        stored: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return stored


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decay_from: int | None = None  # the token count at which the decay began
    positions: dict[int, Position] | None = None

    def counters(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def restored(cls, counters: dict[str, Any]) -> "Progress":
        """From JSON, whose keys are strings."""
        positions = {int(k): Position(**v) for k, v in (counters.pop("positions") or {}).items()}
        return cls(**counters, positions=positions)


def window_length(step: int, tokens: int, n_ctx: int) -> int:
    """64 tokens, then 128, then all of the context; every eighth step 64."""
    grown = 64 if tokens < 4_000_000 else 128 if tokens < 12_000_000 else 256
    return min(n_ctx, 64 if step % 8 == 7 else grown)


def decay_begins(progress: Progress, total: int, settings: Settings) -> bool:
    """Whether the plateau ends with the step at hand."""
    due = progress.tokens >= total * (1 - settings.decay_fraction)
    return progress.decay_from is None and due


def schedule(progress: Progress, total: int, settings: Settings) -> float:
    """The factor on both learning rates; sets the decay's beginning when it is reached."""
    if decay_begins(progress, total, settings):
        progress.decay_from = progress.tokens
    warm = min(1.0, (progress.step + 1) / settings.warmup_steps)
    if progress.decay_from is None:
        return warm
    return warm * max(0.0, (total - progress.tokens) / max(1, total - progress.decay_from))


def snapshot_due(before: int, after: int) -> bool:
    """Whether a power of two from 2^16 on lies in (before, after]."""
    return after >= 1 << 16 and after.bit_length() > max(before, (1 << 16) - 1).bit_length()


def write_model(folder: Path, parameters: Parameters, config: ModelConfig) -> None:
    """config.json, generation_config.json and model.safetensors for `transformers`."""
    folder.mkdir(parents=True, exist_ok=True)
    end_of_text = config.d_vocab - 1
    generation = {f"{role}_token_id": end_of_text for role in ("bos", "eos", "pad")}
    for name, value in (
        ("config.json", config.hugging_face()),
        ("generation_config.json", generation),
    ):
        write_atomically(folder / name, (json.dumps(value, indent=2) + "\n").encode())
    write_atomically(folder / "model.safetensors", float16_file(parameters))


class Run:
    """One training run in its folder."""

    def __init__(
        self, folder: Path, settings: Settings, windows: Windows, total: int, threads: int
    ) -> None:
        """Starts afresh, or from the folder's last checkpoint."""
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.folder, self.settings, self.windows, self.total = folder, settings, windows, total
        for name in ("snapshots", "plateau"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if found := checkpoints(folder):
            kept = load_checkpoint(found[-1], settings.stored(), settings.model)
            self.parameters, self.state = kept.parameters, kept.optimizer
            self.progress = Progress.restored(kept.counters)
            self.say(f"goes on from {found[-1].name} at {self.progress.tokens:,} tokens")
        else:
            generator = torch.Generator().manual_seed(settings.seed)
            self.parameters = initial_parameters(settings.model, generator)
            self.state = optimizer.initial_state(self.parameters)
            self.progress = Progress(positions={})
            self.snapshot()

    def say(self, text: str) -> None:
        """Talk goes to stderr."""
        print(text, file=sys.stderr, flush=True)

    def log(self, **record: Any) -> None:
        """One line of log.jsonl."""
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def next_batch(self) -> Int[Tensor, "batch pos_plus_1"]:
        """The windows of the step at hand."""
        assert self.progress.positions is not None
        n_ctx = self.settings.model.n_ctx
        length = window_length(self.progress.step, self.progress.tokens, n_ctx)
        position = self.progress.positions.get(length, Position())
        size = max(1, self.settings.batch_tokens // length)
        batch, self.progress.positions[length] = self.windows.batch(position, size, length)
        return batch

    def gradient(
        self, batch: Int[Tensor, "batch pos_plus_1"], kernels: Kernels
    ) -> tuple[float, Parameters]:
        """Loss and its gradient, parts of the batch on as many threads as the pool has."""
        half = {name: value.bfloat16() for name, value in self.parameters.items()}

        def part_of(rows: Tensor) -> tuple[float, Parameters]:
            weights = {name: value.detach().requires_grad_() for name, value in half.items()}
            value = loss(weights, rows, self.settings.model, kernels)
            torch.autograd.backward(value)
            share = len(rows) / len(batch)
            return value.item() * share, {
                name: weight.grad.float().mul_(share)
                for name, weight in weights.items()
                if weight.grad is not None
            }

        rows = max(1, PART_TOKENS // (batch.shape[1] - 1))
        (total, gradients), *others = self.pool.map(part_of, batch.split(rows))
        for value, more in others:
            total += value
            for name, gradient in gradients.items():
                gradient.add_(more[name])
        return total, gradients

    def step(self, kernels: Kernels) -> tuple[float, float]:
        """One update; (loss in nats per token, schedule factor)."""
        batch = self.next_batch()
        scale = schedule(self.progress, self.total, self.settings)
        value, gradients = self.gradient(batch, kernels)
        number = self.progress.step + 1
        optimizer.step(
            self.parameters, self.state, gradients, number, scale, self.settings.optimizer
        )
        self.progress.step = number
        self.progress.tokens += batch.shape[0] * (batch.shape[1] - 1)
        return value, scale

    def snapshot(self) -> None:
        """The weights of this moment in float16, for the figure of what emerges when."""
        path = self.folder / "snapshots" / f"tokens-{self.progress.tokens:010d}.safetensors"
        write_atomically(path, float16_file(self.parameters))

    def checkpoint(self, folder: Path) -> None:
        """Everything needed to go on from here."""
        kept = Checkpoint(self.parameters, self.state, self.progress.counters())
        save_checkpoint(folder, kept, self.settings.stored())

    def keep(self, write: Callable[[], None], required: bool = False) -> None:
        """Writes a file; where the disk is full, says so and goes on unless it is required."""
        try:
            write()
        except CheckpointError as error:
            if required:
                raise
            self.say(f"{error} Training goes on without it.")

    def train(self, kernels: Kernels, log_every: int, checkpoint_every: int) -> None:
        """Steps until `total` tokens are seen; a checkpoint that finds no room is only a warning.

        The last checkpoint must find room: failing there is an error.
        """
        losses: list[float] = []
        since, tokens_then = time.monotonic(), self.progress.tokens
        while self.progress.tokens < self.total:
            before = self.progress.tokens
            if decay_begins(self.progress, self.total, self.settings):
                self.keep(lambda: self.checkpoint(self.folder / "plateau"))
            value, scale = self.step(kernels)
            losses.append(value)
            if self.progress.step % log_every == 0 or self.progress.tokens >= self.total:
                elapsed, since = time.monotonic() - since, time.monotonic()
                self.progress.seconds += elapsed
                record = {
                    "step": self.progress.step,
                    "tokens": self.progress.tokens,
                    "loss": round(sum(losses) / len(losses), 4),
                    "scale": round(scale, 4),
                    "tokens_per_s": round((self.progress.tokens - tokens_then) / elapsed),
                    "seconds": round(self.progress.seconds),
                }
                self.log(**record)
                self.say("  ".join(f"{name} {value:,}" for name, value in record.items()))
                losses, tokens_then = [], self.progress.tokens
            last = self.progress.tokens >= self.total
            if snapshot_due(before, self.progress.tokens) or last:
                self.keep(self.snapshot)
            if self.progress.step % checkpoint_every == 0 or last:
                self.keep(lambda: self.checkpoint(self.folder), required=last)
        write_model(self.folder / "final", self.parameters, self.settings.model)


def digest(parts: Iterator[bytes]) -> str:
    """SHA-256 of all parts in order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def parser() -> argparse.ArgumentParser:
    """Every flag has the value the shipped model was made with."""
    shape, rates = ModelConfig(), OptimizerConfig()
    made = argparse.ArgumentParser(
        prog="python -m training.train", description=(__doc__ or "").splitlines()[0]
    )
    made.add_argument(
        "--corpus", type=Path, required=True, help="folder of books with MANIFEST.tsv"
    )
    made.add_argument("--run", type=Path, required=True, help="folder for checkpoints and the log")
    made.add_argument("--tokenizer", type=Path, default=BUNDLED / "tokenizer.json")
    made.add_argument("--tokens", type=int, default=16_500_000, help="tokens to see in all")
    made.add_argument("--decay-fraction", type=float, default=0.25)
    made.add_argument("--batch-tokens", type=int, default=8192, help="tokens in one step")
    made.add_argument("--warmup-steps", type=int, default=100)
    made.add_argument("--muon-lr", type=float, default=rates.muon_lr)
    made.add_argument("--adam-lr", type=float, default=rates.adam_lr)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--n-layers", type=int, default=shape.n_layers)
    made.add_argument("--d-model", type=int, default=shape.d_model)
    made.add_argument("--n-heads", type=int, default=shape.n_heads)
    made.add_argument("--n-ctx", type=int, default=shape.n_ctx)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--log-every", type=int, default=16, help="steps between log lines")
    made.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    made.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the elementwise parts (needs a C++ compiler; three times faster)",
    )
    return made


def prepare(options: argparse.Namespace) -> Run:
    """The run that the flags describe, corpus read and checkpoint found."""
    training_books, _ = split(read_corpus(options.corpus))
    if not training_books:
        raise CorpusError(
            f"{options.corpus} holds only books that are kept out of training. Add others."
        )
    if not options.tokenizer.is_file():
        raise CorpusError(
            f"No tokenizer at {options.tokenizer}. "
            f"Try: python -m training.tokenizer --corpus {options.corpus} --out DIR"
        )
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    settings = Settings(
        model=ModelConfig(
            n_layers=options.n_layers,
            d_model=options.d_model,
            n_heads=options.n_heads,
            n_ctx=options.n_ctx,
            d_vocab=tokenizer.get_vocab_size(),
        ),
        optimizer=OptimizerConfig(muon_lr=options.muon_lr, adam_lr=options.adam_lr),
        seed=options.seed,
        batch_tokens=options.batch_tokens,
        warmup_steps=options.warmup_steps,
        decay_fraction=options.decay_fraction,
        tokenizer=digest(iter([options.tokenizer.read_bytes()])),
        corpus=digest(book.text.encode() for book in training_books),
    )
    windows = Windows(encode_books(training_books, tokenizer), tokenizer, options.seed)
    return Run(options.run, settings, windows, options.tokens, options.threads)


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 when the schedule is through, 2 when the input is at fault."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        run = prepare(options)
        kernels = Kernels.compiled() if options.compile else Kernels()
        run.train(kernels, options.log_every, options.checkpoint_every)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"The model is in {options.run / 'final'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
