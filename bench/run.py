"""Benchmarks: run measurements, print a table, and write `bench/results.json`.

    python bench/run.py [--size SIDE] [NAME ...]

SIDE is the side of the raster in pixels (default: 4096); a smaller one is faster. With NAME, only these measurements
run, and nothing is written. The machine must be idle otherwise: ratios are measured in alternating runs, but times are
affected by other load. "CPU / wall" next to a figure states how many cores were used.
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
# Functions in measures.py and training.py by name. The last two load TensorFlow into the process.
MEASUREMENTS = {
    "exactness": measures.cost_of_exactness,
    "end-to-end": measures.end_to_end,
    "blending": measures.against_blending,
    "memory": measures.peak_memory,
    "start": measures.start,
    "workers": measures.workers,
    "int8": measures.int8_against_float32,
    "keras": measures.int8_against_keras,
    "training": training.training,
}


def main() -> None:
    """Run the measurements, print the table and write the results."""
    parser = argparse.ArgumentParser(description="Measure talud's inference and training.")
    parser.add_argument("--size", type=int, default=4096, help="side of the raster in pixels (default: 4096)")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"measurements to run: {', '.join(MEASUREMENTS)} (default: all)"
    )
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        print("writing the input files (synthetic)", file=sys.stderr)
        subprocess.run([sys.executable, HERE / "inputs.py", folder, str(arguments.size)], check=True)
        inputs = measures.Inputs(Path(folder), arguments.size)
        for name in arguments.names or MEASUREMENTS:
            print(f"measuring: {name}", file=sys.stderr)
            for figure in MEASUREMENTS[name](inputs):
                print(f"  {figure.name}: {figure.value:g} {figure.unit} ({figure.how})", file=sys.stderr)
                figures.append(figure)
    show(figures)
    if arguments.names:
        return
    results = json.dumps([asdict(figure) for figure in figures], indent=2, ensure_ascii=False)
    (HERE / "results.json").write_text(results + "\n", encoding="utf-8")


def show(figures: list[measures.Figure]) -> None:
    """Print a table of the figures."""
    table = Table("figure", "value", "target", "met", "how")
    for figure in figures:
        met = "yes" if figure.met else "no"
        table.add_row(figure.name, f"{figure.value:g} {figure.unit}", figure.target, met, figure.how)
    Console().print(table)


if __name__ == "__main__":
    main()
