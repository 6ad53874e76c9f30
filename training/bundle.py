"""Which files go into the package with the weights?

    python -m training.bundle --run DIR

Copies a finished run's final/ beside the frozen tokenizer, draws the loss curve from its log and
records the checksums. The card, MODEL_CARD.md, is written by hand from the log and from
`training.evaluate`. Costs a second.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from .chart import Series, line_chart
from .checkpoint import write_atomically
from .errors import CheckpointError, TrainingError
from .train import BUNDLED

COPIED = ("config.json", "generation_config.json", "model.safetensors")
SUMMED = (*COPIED, "tokenizer.json", "tokenizer_config.json")


def read_log(run: Path) -> list[dict[str, Any]]:
    """One record per logged step; where a killed run repeated steps, the later one of each."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise CheckpointError(f"No log.jsonl in {run}. Try: the --run folder of training.")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def loss_curve(records: list[dict[str, Any]]) -> str:
    """Training loss in nats per token over millions of tokens."""
    millions = [record["tokens"] / 1e6 for record in records]
    losses = [float(record["loss"]) for record in records]
    return line_chart(
        [Series(f"loss {losses[-1]:.2f}", millions, losses)],
        "Training loss",
        "training tokens (millions)",
        "nats per token",
        # The first steps fall from ln 8192 = 9; the chart is for what follows.
        (min(losses) - 0.2, max(min(losses) + 0.2, min(6.5, max(losses)))),
        log_x=False,
    )


def bundle(run: Path, folder: Path) -> None:
    """Copies, draws and sums."""
    for name in COPIED:
        source = run / "final" / name
        if not source.is_file():
            raise CheckpointError(
                f"{source} is missing: the run is not finished. Try: python -m training.train "
                f"--run {run} with the flags it was started with."
            )
        write_atomically(folder / name, source.read_bytes())
    write_atomically(folder / "loss.svg", loss_curve(read_log(run)).encode())
    sums = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in SUMMED)
    write_atomically(folder / "SHA256SUMS", "".join(sums).encode())


def main(arguments: list[str] | None = None) -> int:
    """0 when everything is in place, 2 when the run is not finished."""
    parser = argparse.ArgumentParser(
        prog="python -m training.bundle", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder with tokenizer.json")
    options = parser.parse_args(arguments)
    try:
        bundle(options.run, options.out)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
