"""The benchmarks: measures, prints one table, and writes `bench/results.json`.

    python bench/run.py [--size SIDE] [NAME ...]

SIDE is the side of the raster in pixels, 4096 unless said otherwise; a smaller one gives a quick look. NAME picks
from the measurements; then nothing is written. They need a machine that does nothing else: ratios come from runs in
turn, but a time is what it is, and "CPU / wall" beside a figure says how many cores it really had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import measures
from rich.console import Console
from rich.table import Table

import training

HERE = Path(__file__).parent
MEASUREMENTS = {  # one line for each; a new figure is a function in measures.py or training.py and a line here
    "exactness": measures.cost_of_exactness,
    "end-to-end": measures.end_to_end,
    "blending": measures.against_blending,
    "memory": measures.peak_memory,
    "start": measures.start,
    "workers": measures.workers,
    "int8": measures.int8_against_float32,
    "keras": measures.int8_against_keras,  # these two last, for they bring TensorFlow into the process
    "training": training.training,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure talud's inference and training.")
    parser.add_argument("--size", type=int, default=4096, help="side of the raster in pixels, 4096 by default")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all by default")
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        print("making the material (synthetic)", file=sys.stderr)
        subprocess.run([sys.executable, HERE / "material.py", folder, str(arguments.size)], check=True)
        material = measures.Material(Path(folder), arguments.size)
        for name in arguments.names or MEASUREMENTS:
            print(f"measuring: {name}", file=sys.stderr)
            for figure in MEASUREMENTS[name](material):
                print(f"  {figure.name}: {figure.value:g} {figure.unit} ({figure.how})", file=sys.stderr)
                figures.append(figure)
    show(figures)
    if arguments.names:
        return
    results = json.dumps([asdict(figure) for figure in figures], indent=2, ensure_ascii=False)
    (HERE / "results.json").write_text(results + "\n", encoding="utf-8")


def show(figures: list[measures.Figure]) -> None:
    """Print the table."""
    table = Table("figure", "value", "target", "met", "how")
    for figure in figures:
        met = "yes" if figure.met else "no"
        table.add_row(figure.name, f"{figure.value:g} {figure.unit}", figure.target, met, figure.how)
    Console().print(table)


if __name__ == "__main__":
    main()
