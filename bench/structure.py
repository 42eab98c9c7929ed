"""Structure figures of the code, with limits.

    python bench/structure.py [FOLDER] [--places]

FOLDER is a checkout (default: the one of this file). The exit code is 1 if a limit is exceeded.

Definitions:

- Lines of a file: all of them. Body of a function: the lines from its first statement, after the docstring, to its
  last one. Parameters: all but `self` and `cls`.
- Import cycle: modules that import each other, directly or indirectly; imports for type checkers are included.
- Arrow against the layers: import of a module in a higher or neighbouring independent layer of pyproject.toml.
- Literal duplicate: six or more lines of code that follow each other in two places and differ only in indentation.
  Blank lines, comments, docstrings, imports and lines without a letter or digit are ignored.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp

PACKAGE = "talud"
COMMAND_LINE = "talud.cli"  # exempt from the limit on parameters: a command has one for each option
FILE_LINES, BODY_LINES, PARAMETERS, DUPLICATE_LINES = 400, 60, 8, 6
# Upper limit of each figure.
LIMITS = {
    "modules": 199,
    "files over 400 lines": 0,
    "functions with a body over 60 lines": 0,
    "functions outside talud.cli with more than 8 parameters": 0,
    "import cycles": 0,
    "arrows against the layers": 0,
    "literal duplicates in src": 0,
    "literal duplicates in tests": 0,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Line = tuple[int, str]  # number and text, without indentation
Place = tuple[Path, int, int]  # first and last line


@dataclass(frozen=True)
class Figure:
    """Figure with a limit.

    Attributes:
        name: key of the limit.
        value: measured value.
        places: locations that were counted.
    """

    name: str
    value: int
    places: Sequence[str] = ()

    @property
    def broken(self) -> bool:
        """True if the value exceeds its limit."""
        return self.value > LIMITS[self.name]


@dataclass(frozen=True)
class Module:
    """Source of a module."""

    name: str
    path: Path
    text: str

    @property
    def lines(self) -> int:
        """Number of lines."""
        return self.text.count("\n")

    @property
    def package(self) -> str:
        """Package below the root package; "(root)" for modules of the root package."""
        return self.path.parts[2] if len(self.path.parts) > 3 else "(root)"

    def functions(self) -> Iterator[Function]:
        """Yield all functions, including methods and nested functions."""
        yield from (node for node in ast.walk(ast.parse(self.text)) if isinstance(node, Function))


def read_modules(root: Path, package: str = PACKAGE) -> list[Module]:
    """Return the modules of a package, sorted by path."""
    modules = []
    for path in sorted((root / "src" / package).rglob("*.py")):
        parts = path.relative_to(root / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, path.relative_to(root), path.read_text(encoding="utf-8")))
    return modules


def body_lines(function: Function) -> int:
    """Return the number of lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> int:
    """Return the number of parameters, without `self` and `cls`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return sum(one is not None and one.arg not in ("self", "cls") for one in named)


def cycles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other."""
    reached = {name: _reachable(name, imports) for name in imports}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in imports}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Return the modules that a module imports, directly or indirectly."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def against_layers(imports: Mapping[str, set[str]], layers: Sequence[str]) -> list[str]:
    """Return the imports from a lower to a higher or neighbouring layer.

    The highest layer comes first; independent neighbours are separated by `|`.
    """
    rank = {name.strip(): number for number, layer in enumerate(layers) for name in layer.split("|")}

    def package_of(module: str) -> str | None:
        return next((name for name in rank if module == name or module.startswith(f"{name}.")), None)

    wrong = []
    for importer, imported in ((one, other) for one, others in imports.items() for other in others):
        low, high = package_of(importer), package_of(imported)
        if low and high and low != high and rank[low] >= rank[high]:
            wrong.append(f"{importer} → {imported}")
    return sorted(wrong)


def code_lines(text: str) -> list[Line]:
    """Return the lines that are compared in the search for duplicates."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            left_out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.start[1]
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        code = line[: comments.get(number)].strip()
        if number not in left_out and re.search(r"\w", code):
            lines.append((number, code))
    return lines


def duplicates(files: Mapping[Path, str], shortest: int = DUPLICATE_LINES) -> list[tuple[Place, Place]]:
    """Return pairs of locations with the same lines of code.

    Each pair is a run of lines of maximal length.
    """
    lines = {path: code_lines(text) for path, text in files.items()}
    runs: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, code in lines.items():
        for start in range(len(code) - shortest + 1):
            runs[tuple(line for _, line in code[start : start + shortest])].append((path, start))
    same = {
        (one, other)
        for places in runs.values()
        for number, one in enumerate(places)
        for other in places[number + 1 :]
        if one[0] != other[0] or abs(one[1] - other[1]) >= shortest
    }
    pairs = []
    for (path, start), (other_path, other_start) in sorted(same):
        if ((path, start - 1), (other_path, other_start - 1)) in same:
            continue
        length = 0
        while ((path, start + length), (other_path, other_start + length)) in same:
            length += 1
        last = length + shortest - 2
        pairs.append(
            (
                (path, lines[path][start][0], lines[path][start + last][0]),
                (other_path, lines[other_path][other_start][0], lines[other_path][other_start + last][0]),
            )
        )
    return pairs


def read_imports(root: Path, package: str = PACKAGE) -> dict[str, set[str]]:
    """Return the modules that each module imports, within the package."""
    sys.path.insert(0, str(root / "src"))
    graph = grimp.build_graph(package, cache_dir=None)
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in sorted(graph.modules)}


def measure(root: Path, modules: Sequence[Module], imports: Mapping[str, set[str]]) -> list[Figure]:
    """Return the figures with limits."""
    configuration = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = configuration["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    functions = [(module, function) for module in modules for function in module.functions()]
    long = [f"{module.path}: {module.lines}" for module in modules if module.lines > FILE_LINES]
    bodies = [f"{_place(*one)}: {body_lines(one[1])}" for one in functions if body_lines(one[1]) > BODY_LINES]
    many = [
        f"{_place(module, function)}: {parameters(function)}"
        for module, function in functions
        if parameters(function) > PARAMETERS and not module.name.startswith(COMMAND_LINE)
    ]
    circles = [" ↔ ".join(group) for group in cycles(imports)]
    found = [Figure("modules", len(modules))]
    for name, places in (
        (f"files over {FILE_LINES} lines", long),
        (f"functions with a body over {BODY_LINES} lines", bodies),
        (f"functions outside {COMMAND_LINE} with more than {PARAMETERS} parameters", many),
        ("import cycles", circles),
        ("arrows against the layers", against_layers(imports, layers)),
    ):
        found.append(Figure(name, len(places), places))
    for folder in ("src", "tests"):
        files = {path.relative_to(root): path.read_text(encoding="utf-8") for path in (root / folder).rglob("*.py")}
        pairs = [f"{_span(one)} = {_span(other)}" for one, other in duplicates(files)]
        found.append(Figure(f"literal duplicates in {folder}", len(pairs), pairs))
    return found


def _place(module: Module, function: Function) -> str:
    return f"{module.path}:{function.lineno} {function.name}"


def _span(place: Place) -> str:
    return f"{place[0]}:{place[1]}-{place[2]}"


def _show_packages(modules: Sequence[Module]) -> None:
    count, lines = Counter(module.package for module in modules), Counter[str]()
    for module in modules:
        lines[module.package] += module.lines
    for package in sorted(count):
        print(f"{package:16} {count[package]:4} modules {lines[package]:7,} lines")
    print(f"{'all':16} {len(modules):4} modules {sum(lines.values()):7,} lines")


def _show_functions(modules: Sequence[Module]) -> None:
    bodies = sorted(body_lines(function) for module in modules for function in module.functions())
    print(
        f"functions: {len(bodies):,}; body in lines: median {statistics.median(bodies):g}, mean "
        f"{statistics.mean(bodies):.1f}, 90 % {bodies[int(0.9 * len(bodies))]}, longest {bodies[-1]}, "
        f"over 40: {sum(one > 40 for one in bodies)}, over 60: {sum(one > 60 for one in bodies)}"
    )


def main() -> int:
    """Print the figures; return the exit code."""
    parser = argparse.ArgumentParser(description="Print the figures of the structure of the code.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--places", action="store_true", help="also show the locations of figures within their limits")
    options = parser.parse_args()
    root = options.folder.resolve()
    modules = read_modules(root)
    _show_packages(modules)
    longest = max(modules, key=lambda module: module.lines)
    print(f"longest file: {longest.path}, {longest.lines} lines")
    _show_functions(modules)
    text = "".join(module.text for module in modules)
    marks = ("type: ignore", "noqa", "fmt: skip")
    print(", ".join(f"{mark}: {len(re.findall(f'# ?{mark}', text))}" for mark in marks))
    figures = measure(root, modules, read_imports(root))
    for one in figures:
        print(f"{'BROKEN' if one.broken else 'met':6} {one.name}: {one.value} (at most {LIMITS[one.name]})")
        if one.broken or options.places:
            print("".join(f"         {place}\n" for place in one.places), end="")
    return int(any(one.broken for one in figures))


if __name__ == "__main__":
    sys.exit(main())
