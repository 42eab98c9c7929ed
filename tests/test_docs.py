"""Tests of the documentation and of lock files."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from doc_blocks import COMMANDS, Block, blocks, pages, run_by
from fresh_clone import ROOT
from talud.contract import Contract
from talud.params import Params

DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not {"_generated", "_build"} & set(path.relative_to(ROOT).parts)
)
BLOCKS = [block for page in pages() for block in blocks(page)]


class Page(HTMLParser):
    """Text, anchors and loaded addresses of a page of HTML."""

    def __init__(self, path: Path) -> None:
        """Read a page."""
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep what a browser loads for a tag."""
        values = dict(attributes)
        loading = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
        if tag in loading and (address := values.get(loading[tag])) and values.get("rel") not in ("canonical",):
            self.loaded.append(address)

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with every warning an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", ROOT / "docs", out]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return out


def commands(group: Any, context: Any, prefix: str = "talud") -> Iterator[tuple[str, Any, Any]]:
    """Yield name, command and context of every command that is not hidden."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command.hidden:
            continue
        yield f"{prefix} {name}", command, context
        if isinstance(command, TyperGroup):
            yield from commands(command, context, f"{prefix} {name}")


def fields(model: type[BaseModel]) -> set[str]:
    """Return the names of all fields of a model and of the models in it."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", ())}


@pytest.mark.slow
def test_built_page_lists_every_command_and_option(site: Path) -> None:
    from talud.cli.main import app

    text = Page(site / "reference/cli.html").text
    group = typer.main.get_command(app)
    found = list(commands(group, typer.Context(group, info_name="talud")))
    assert len(found) > 20
    for name, command, context in found:
        assert name in text
        for parameter in command.get_params(context):
            if parameter.get_help_record(context):
                for spelling in parameter.opts if parameter.param_type_name == "option" else ():
                    assert spelling in text, f"{name} {spelling}"


@pytest.mark.slow
def test_built_pages_list_every_key_field_and_variable(site: Path) -> None:
    from talud.serving.settings import Settings

    for page, names in (
        ("params", fields(Params)),
        ("contract", fields(Contract)),
        ("settings", {str(Settings.model_config["env_prefix"]) + name.upper() for name in Settings.model_fields}),
    ):
        words = set(re.findall(r"\w+", Page(site / f"reference/{page}.html").text))
        assert names <= words, page


@pytest.mark.slow
def test_built_page_lists_every_public_name_of_python(site: Path) -> None:
    import talud
    from talud import errors

    text = Page(site / "reference/python.html").text
    names = {name for name in talud.__all__ if not name.startswith("_")}
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names | raised <= set(re.findall(r"\w+", text))


@pytest.mark.slow
def test_built_page_lists_every_module(site: Path) -> None:
    listed = set(re.findall(r"talud[\w.]*", Page(site / "reference/modules.html").text))
    source = ROOT / "src"
    modules = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for path in (source / "talud").rglob("*.py")
    }
    assert modules <= listed


@pytest.mark.slow
def test_site_loads_nothing_from_outside(site: Path) -> None:
    for path in site.rglob("*.html"):
        outside = [address for address in Page(path).loaded if re.match(r"(?:https?:)?//", address)]
        assert not outside, path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text), path.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize(
    "document",
    # The changelog also mentions names that were replaced.
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_modules_and_names_that_pages_mention_exist(document: Path) -> None:
    for name in set(re.findall(r"`(talud(?:\.\w+)+)\b", document.read_text(encoding="utf-8"))):
        if re.search(r"\.(tif|gpkg|json|contract|example)$", name):
            continue
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                value: Any = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                value = getattr(value, part)
            break


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_command_block_is_run_or_states_the_reason(block: Block) -> None:
    assert block.language, "state the language of the block: sh, console, python, yaml or text"
    if block.language not in COMMANDS:
        assert block.test is None
        return
    assert block.test or block.reason, "precede it with <!-- run by tests/FILE.py::TEST --> or <!-- not run: REASON -->"
    if block.test:
        path, name = block.test.split("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {name}(" in source, block.test
        assert "from doc_blocks import" in source, f"{path} does not read the block from the page"


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_page_has_no_indented_code(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"\n\n    \S", text), "write code as a fenced block"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_have_the_options_that_exist(document: Path) -> None:
    from talud.cli.main import app

    for block in blocks(document) if document.name != "CHANGELOG.md" else ():
        if block.language not in COMMANDS - {"python"}:
            continue
        for words in re.findall(r"^(?:.*?[;&|] )? *talud (.+)$", block.code.replace("\\\n", " "), flags=re.MULTILINE):
            command: Any = typer.main.get_command(app)
            arguments = shlex.split(re.split(r"[;&|>]", words)[0], comments=True)
            while isinstance(command, TyperGroup):
                command = command.commands[arguments.pop(0)]
            parameters = {name: one for one in command.params for name in one.opts}
            given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            assert given <= set(parameters) | {"--help"}, words
            options = {name for name in parameters if name.startswith("--")}
            required = {name for name in options if parameters[name].required}
            assert required <= given, words


@pytest.mark.slow
def test_documented_key_commands_run(tmp_path: Path) -> None:
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environ |= {"TALUD_SERVICE_DATA": str(tmp_path), "TALUD_SERVICE_RESULTS": str(tmp_path.parent / "results")}
    for block in run_by("tests/test_docs.py::test_documented_key_commands_run"):
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "visitor" in done.stdout


@pytest.mark.parametrize("model", [Params, Contract])
def test_every_field_of_the_reference_is_described(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    definitions = {model.__name__: schema} | schema["$defs"]
    fields = {
        f"{name}.{field}": facts
        for name, definition in definitions.items()
        for field, facts in definition.get("properties", {}).items()
    }
    assert len(fields) > 40
    assert [name for name, facts in fields.items() if not facts.keys() & {"description", "$ref"}] == []


def test_diagram_of_the_architecture_names_every_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    diagram = page.partition("```text")[2].partition("```")[0]
    named = {name.strip().removeprefix("talud.") for layer in layers for name in layer.split("|")}
    assert named <= set(re.findall(r"\w+", diagram))


def test_architecture_names_existing_modules_for_files() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    table = page.partition("| file | module |")[2].partition("\n\n")[0]
    modules = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", row.split("|")[2])]
    assert len(modules) > 15
    assert [name for name in modules if not (ROOT / f"src/talud/{name.replace('.', '/')}.py").is_file()] == []


def test_lock_holds_names_and_versions_only() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s/:]+( ; [^/]+)?", line), line


def test_locks_of_page_and_service_hold_no_address() -> None:
    for lock in ("page/package-lock.json", "serving/requirements.lock"):
        assert "://" not in (ROOT / lock).read_text(), lock
