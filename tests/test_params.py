from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from talud.errors import ParamsError, TaludWarning
from talud.params import Params

ROOT = Path(__file__).resolve().parent.parent


def changed(tmp_path: Path, **edits: object) -> Path:
    """Return the project's params.yaml with other values of dotted keys."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, value in edits.items():
        *parents, last = dotted.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_study_search_is_table_1_of_the_study() -> None:
    study = Params.read(ROOT / "params.yaml").searches["study"]
    assert set(study.filters) == {16, 32, 64}
    assert set(study.learning_rate) == {5e-4, 10e-4, 5e-5, 10e-5, 5e-6, 10e-6}
    assert set(study.batch_size) == {16, 32, 64}
    assert study.epochs == 150


def test_misspelt_key_is_reported_with_allowed_keys(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"unknown key 'split\.strid'; did you mean 'stride'\? \(allowed: block, "):
        Params.read(changed(tmp_path, split__strid=3))


def test_misspelt_area_key_is_reported_with_allowed_keys(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"'areas\.synthetic_argelia\.rol'; did you mean 'role'\?.*inventory_filter"):
        Params.read(changed(tmp_path, areas__synthetic_argelia__rol="gate"))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"search": "studdy"}, "unknown search 'studdy'; defined: demo, halving"),
        ({"split__patch": 0}, "split.patch: Input should be greater than 0"),
        ({"split__patch": 512}, "does not fit into a block"),
        ({"split__validation": 0.9}, "must be less than 1"),
        ({"searches__demo__filters": []}, "searches.demo.filters"),
        ({"searches__demo__learning_rate": [-1.0]}, "searches.demo.learning_rate.0"),
        ({"stack__lee_window": 4}, "must be odd"),
        ({"areas": {"a/b": {"role": "transfer", "folder": "data"}}}, "the name 'a/b' must consist of letters"),
        ({"band_sets": {"3.band": ["red"]}}, "the name '3.band' must consist of letters"),
        ({"band_sets__3band": ["red", "red", "blue"]}, "lists a band twice"),
        ({"areas__synthetic_argelia__event": "2014-10-01"}, "not before the event"),
        ({"areas__synthetic_argelia__event": "2014-12-01"}, "before the event"),
    ],
)
def test_invalid_value_is_reported_in_one_line(tmp_path: Path, edits: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        Params.read(changed(tmp_path, **edits))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed:", "seed: 1\nseed:", "the key 'seed' in line {second} is a duplicate of line {first}"),
        ("  stride:", "  stride: 8\n  stride:", "the key 'stride' in line {second} is a duplicate of line {first}"),
    ],
)
def test_duplicate_key_is_reported_with_both_lines(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace(old, new, 1))
    first = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(old))
    with pytest.raises(ParamsError) as caught:
        Params.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said.format(first=first, second=first + 1) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_duplicate_key_in_one_line_is_reported(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("split: {patch: 64, patch: 32}\n")
    with pytest.raises(ParamsError, match="the key 'patch' in line 1 is a duplicate of line 1"):
        Params.read(tmp_path / "params.yaml")


def test_key_that_overrides_a_merged_key_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = "x: &shared {patch: 1}\n" + (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("split:", "split:\n  <<: *shared", 1))
    with pytest.raises(ParamsError, match=r"unknown key 'x'"):  # nothing but the anchor's own place is wrong
        Params.read(path)


@pytest.mark.parametrize("content", ["a: [", "- 1", "", "\x00"])
def test_file_without_a_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ParamsError) as caught:
        Params.read(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_ablation_recipes_differ_in_one_setting_each() -> None:
    recommended = Params.read(ROOT / "configs" / "landslide4sense.yaml").recipes["robust"]
    recipes = dict(Params.read(ROOT / "configs" / "ablation.yaml").recipes)
    assert recipes.pop("robust") == recommended
    del recipes["study"]
    assert len(recipes) == 10
    for name, recipe in recipes.items():
        changed = [key for key, value in recipe if value != getattr(recommended, key)]
        assert len(changed) == 1, name


@pytest.mark.parametrize("place", ["  synthetic_argelia:", "  3band:", "  robust:"])
@pytest.mark.parametrize("name", ["no", "On", "yes", "off", "null", "~", "true", "2015", "1e3", "1.5", "0x1F", "12:30"])
def test_name_that_yaml_reads_as_non_text_must_be_quoted(tmp_path: Path, place: str, name: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert place in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(place, f"  {name}:", 1))
    with pytest.raises(
        ParamsError, match=f'the key {re.escape(name)} in line .* put it in quotes.*"{re.escape(name)}"'
    ):
        Params.read(path)


@pytest.mark.parametrize("name", ['"no"', "'2015'", "y", "N", "None", "e3", "1e"])
def test_name_that_yaml_reads_as_text_is_accepted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("  synthetic_argelia:", f"  {name}:", 1))
    assert name.strip("\"'") in Params.read(path).areas


@pytest.mark.parametrize("key", ["recipe", "search", "reference"])
def test_value_that_yaml_reads_as_non_text_must_be_quoted(tmp_path: Path, key: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(f"(?m)^{key}: \\w+", f"{key}: off", text))
    with pytest.raises(ParamsError, match=f"{key}: expected text, but YAML reads yes, no, on, off"):
        Params.read(path)


def without(tmp_path: Path, key: str, **edits: object) -> Path:
    path = changed(tmp_path, **edits)
    content = yaml.safe_load(path.read_text())
    del content[key]
    path.write_text(yaml.safe_dump(content))
    return path


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params\.yaml: the key 'search' is missing"):
        Params.read(without(tmp_path, "search"))


def test_missing_recipe_defaults_to_study_except_under_dvc(tmp_path: Path) -> None:
    path = without(tmp_path, "recipe")
    assert Params.read(path).recipe == "study"
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    with pytest.warns(TaludWarning, match=r"the key 'recipe' is missing.* add the line recipe: study"):
        assert Params.read(path).recipe == "study"


def test_missing_recipe_is_reported_without_a_study_recipe(tmp_path: Path) -> None:
    path = without(tmp_path, "recipe", recipes={"ours": {}, "theirs": {}}, reference=None)
    with pytest.raises(ParamsError, match="the key 'recipe' is missing; give one of: ours, theirs"):
        Params.read(path)
