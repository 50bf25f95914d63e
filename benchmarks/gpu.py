"""One part of what `gpu.sh` measures, which calls this once for each; and in the end all of them in one JSON.

    python benchmarks/gpu.py PART --out=FOLDER [--tiny]     # environment, step-none, ..., two-processes
    python benchmarks/gpu.py join --out=FOLDER [--tiny]     # writes FOLDER/gpu.json

A row that `FOLDER/rows` holds is not measured again. Weights are random, in the decoder shape of PaliGemma-2-3B (2.0
billion parameters; vision tower and vocabulary are small, so that 1 billion frozen ones are missing), with an expert of
0.36 billion, two cameras of 256 tokens, 4 flow samples, `--policy.dtype=bfloat16`. All that learns is float32.

- `environment`: card, driver, versions, what the card reaches in a large product and a large copy.
- `step-none`, `step-aegis` (the default anchor), `step-gaussian` (the other), `step-lora`: time, shares, peak memory
  and MFU of a training step, by batch size, with gradient checkpointing and without. Ten steps, in one of which weights
  are put back.
- `chunk`: inference of one chunk of actions, with torch.compile of decoder layers and expert and without.
- `anchor`: the pass of `aegis-anchor` over 300 questions, as `anchor_cost.py` measures it.
- `two-processes`: a step of two processes under DDP, if there are two cards.

MFU is what `_flops.training_flops` counts (6 x parameters x tokens of what learns, 4 or 2 of what is frozen; attention,
recomputing and whatever protects left out) over the step's time and the data sheet's dense bfloat16 rate.

A row without memory says `out_of_memory`. A part that fails leaves the reason in `rows/NAME.failed`, and the others go
on.
"""

import argparse
import os
import sys
from pathlib import Path

from _gpu_plan import FULL, PARTS, TINY, TWO_PROCESSES, Kept, Row, Scale, joined, rows_of

from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json

_JOIN = "join"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, _JOIN])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="everything small and on the CPU")
    arguments = parser.parse_args()
    kept, scale = Kept(arguments.out), TINY if arguments.tiny else FULL
    if arguments.part == _JOIN:
        sys.exit(join(kept, scale, arguments.out / "gpu.json"))
    missing = kept.missing(rows_of(arguments.part, scale))
    if not missing:
        print(f"{arguments.part}: measured before")
    elif arguments.part == TWO_PROCESSES and not is_launched():
        launch_two(kept, scale, missing)
    else:
        measure(arguments.part, missing, kept, scale)


def measure(part: str, rows: list[Row], kept: Kept, scale: Scale) -> None:
    from _gpu_work import measure_part  # torch and LeRobot take seconds, which finished parts do not wait for

    try:
        measure_part(part, rows, kept, scale)
    except AegisError as error:
        sys.exit(str(error))


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launch_two(kept: Kept, scale: Scale, rows: list[Row]) -> None:
    """Go on as two processes, if there is a card for each."""
    cards = (kept.read(Row("environment")) or {}).get("cards", 0)
    if scale.device != "cpu" and cards < 2:
        for row in rows:
            kept.keep(row, {"skipped": "there are no two cards"})
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    os.execv(sys.executable, [*torchrun, *sys.argv])


def join(kept: Kept, scale: Scale, path: Path) -> int:
    """Write the one JSON; the exit status says whether it is whole."""
    whole = joined(kept, scale)
    write_json(path, whole)
    for name, reason in whole["left_out"].items():
        print(f"left out: {name} ({reason})")
    print(f"wrote {path}")
    return 1 if whole["left_out"] else 0


if __name__ == "__main__":
    main()
