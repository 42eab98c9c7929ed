"""Tests of a study's run in MLflow, and of its page of trials in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from chromium import chromium, open_page
from talud.errors import RegistryError, StudyError
from talud.registry import Store
from talud.registry.leaderboard import FinishedTrial, Leaderboard, trials_page

TAGS = {"band_set": "3band", "search": "study"}
HOSTILE = "a|b </script><script>alert(1)</script> [x](http://example.org) " + "very long " * 60


def run_trial(store: Store, parent: str, number: int, f1: float, network: str = "unet", **more: float) -> str:
    """Log a finished trial with a configuration of its own."""
    choice = {"filters": 16 * 2 ** (number % 3), "learning_rate": 10.0 ** -(3 + number % 2), "batch_size": 8 + number}
    scores = {"f1": f1, "precision": f1 + 0.01, "recall": f1 - 0.01, "iou": f1 / (2 - f1)}
    facts = {"best_epoch": 7, "seconds": 60 + number, "parameters": 1000, **more}
    hyperparameters = {**choice, "epochs": 30, "loss": "Dice", "network": network}
    with store.runs.trial(parent, f"3band · trial {number}", hyperparameters, TAGS) as trial:
        trial.log_epochs([(1, 0, {"f1": 0.99, "val_f1": f1})])
        trial.log_scores({**scores, **facts})
    return trial.run_id


def fail_trial(store: Store, parent: str, name: str, error: BaseException) -> None:
    with pytest.raises(type(error)), store.runs.trial(parent, f"3band · {name}", {}, TAGS):
        raise error


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def parent(root: Path) -> str:
    """Return a study of 25 finished trials, 2 failed ones and a stopped one.

    One trial finished at its second attempt.
    """
    store = Store.open(root, create=True)
    with store.runs.study("3band · study", TAGS, "Seed 7.") as run_id:
        fail_trial(store, run_id, "trial 3", StudyError("at first"))
        for number in range(25):
            run_trial(store, run_id, number, 0.3 + 0.01 * number)
        fail_trial(store, run_id, "diverges", StudyError("the loss is not a number"))
        fail_trial(store, run_id, HOSTILE, StudyError(HOSTILE))
        fail_trial(store, run_id, "stopped", KeyboardInterrupt())
    return run_id


def note_of(root: Path, run_id: str) -> str:
    return str(Store.open(root).client.get_run(run_id).data.tags["mlflow.note.content"])


def page_of(root: Path, run_id: str, folder: Path) -> Path:
    return Path(Store.open(root).client.download_artifacts(run_id, "trials.html", str(folder)))


def test_note_lists_the_best_twenty_and_counts_the_rest(root: Path, parent: str) -> None:
    note = note_of(root, parent).replace("&emsp;", "")
    rows = re.findall(r"^\| (\d+) \| \[(trial \d+)\]\(#/experiments/\d+/runs/(\w{32})\) \| ([\d.]+) ", note, re.M)
    assert [(int(place), name, f1) for place, name, _, f1 in rows] == [
        (place, f"trial {25 - place}", f"{0.55 - 0.01 * place:.3f}") for place in range(1, 21)
    ]
    client = Store.open(root).client
    assert client.get_run(rows[0][2]).data.metrics["f1"] == client.get_run(parent).data.metrics["f1"] == 0.54
    best = f"[trial 24](#/experiments/1/runs/{rows[0][2]})"
    assert note.startswith(f"**Best of 25 finished trials: {best}, validation F1 0.540.**")
    assert f"[trials.html](#/experiments/1/runs/{parent}/artifacts/trials.html)" in note
    assert "and 5 more with an F1 of 0.300 to 0.340" in note
    assert "| 0.540 | 0.550 | 0.530 | 0.370 | 7 of 30 | 84 |" in note
    assert note.endswith("Seed 7.")


def test_failed_trials_are_listed_unless_finished_later(root: Path, parent: str) -> None:
    note = note_of(root, parent)
    assert "**Failed: 2**" in note
    assert "- diverges: StudyError: the loss is not a number" in note
    assert "at first" not in note
    assert "Not finished: 1." in note


@pytest.mark.slow
def test_note_escapes_and_shortens_names_and_reasons(root: Path) -> None:
    store = Store.open(root, create=True)
    with store.runs.study("hostile", TAGS, "The end.") as run_id:
        for number in range(12):
            fail_trial(store, run_id, f"{number} {HOSTILE}", StudyError(HOSTILE))
    note = note_of(root, run_id)
    assert len(note) < 8000  # what MLflow keeps of a tag
    assert note.endswith("The end.")
    assert not re.search(r"(?<!\\)[<\[|]", note)
    assert "and 2 more" in note


def test_smallest_of_equal_trials_is_first(root: Path) -> None:
    store = Store.open(root, create=True)
    with store.runs.study("equal", TAGS) as run_id:
        for number, parameters in enumerate((500, 100, 100)):
            run_trial(store, run_id, number, 0.5, parameters=parameters)
    assert [trial.name for trial in Leaderboard.read(store.client, run_id).finished] == [
        "trial 1",
        "trial 2",
        "trial 0",
    ]


def test_view_of_an_earlier_version_lists_networks(root: Path, parent: str) -> None:
    client = Store.open(root).client
    experiment = client.get_run(parent).info.experiment_id
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.trials", "{}")
    Store.open(root)  # reads only
    assert client.get_experiment(experiment).tags["mlflow.sharedViewState.trials"] == "{}"
    Store.open(root, create=True)
    view = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.trials"])
    assert view["selectedColumns"][:3] == ["metrics.`f1`", "params.`network`", "params.`filters`"]


def test_note_names_every_network_if_they_differ(root: Path) -> None:
    store = Store.open(root, create=True)
    with store.runs.study("networks", TAGS) as run_id:
        for number, network in enumerate(("unet", "resunet")):
            run_trial(store, run_id, number, 0.5 + 0.1 * number, network=network)
    assert [trial.name for trial in Leaderboard.read(store.client, run_id).finished] == ["trial 1", "unet · trial 0"]
    assert "[unet · trial 0]" in note_of(root, run_id)


def test_study_without_scores_has_a_note_but_no_page(root: Path) -> None:
    with Store.open(root, create=True).runs.study("empty", TAGS) as run_id:
        pass
    assert note_of(root, run_id) == "No trial has finished."
    assert Store.open(root).client.list_artifacts(run_id) == []


def test_all_trials_of_a_long_study_are_read(root: Path, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = type(Store.open(root).client)
    whole = client.search_runs
    monkeypatch.setattr(client, "search_runs", lambda *given, **named: whole(*given, max_results=4, **named))
    assert len(Leaderboard.read(Store.open(root).client, parent).finished) == 25


def test_logged_file_replaces_its_predecessor(root: Path, parent: str, tmp_path: Path) -> None:
    store = Store.open(root)
    for content in (b"first", b"second"):
        store.runs.log_file(parent, content, "notes/one.txt")
    found = store.client.download_artifacts(parent, "notes/one.txt", str(tmp_path))
    assert Path(found).read_bytes() == b"second"


def test_unwritable_store_is_reported(root: Path) -> None:
    store = Store.open(root, create=True)

    def study() -> None:
        with store.runs.study("3band · study", TAGS) as run_id:
            run_trial(store, run_id, 1, 0.5)
            (root / "mlartifacts").mkdir(exist_ok=True)
            (root / "mlartifacts" / run_id).write_text("a file where a folder should be")

    with pytest.raises(RegistryError, match=r"^trials\.html: .*: Not a directory; nothing is lost, try again$"):
        study()


def row(number: int, **values: float) -> FinishedTrial:
    choice: Mapping[str, float] = {"filters": 16, "learning_rate": 1e-3, "batch_size": 8, "f1": 0.5 - 0.1 * number}
    return FinishedTrial(f"{number:032x}", f"trial {number}", {**choice, **values})


def test_axis_without_values_of_all_trials_is_omitted() -> None:
    html = trials_page("study", [row(0, seconds=5.0), row(1)], [])
    assert "Seconds" not in html
    assert "Validation F1" in html
    assert "Batch size" not in trials_page("study", [row(0, batch_size=0.0)], [])  # no logarithm


NETWORKS = ("unet", "resunet", "pretrained_unet")


def networks_page() -> str:
    """Return the page of a study over three networks and two learning rates, the last network best."""
    trials = [
        FinishedTrial(f"{place:032x}", f"trial {place}", {**row(0).values, "learning_rate": rate, "f1": f1}, network)
        for place, (rate, f1, network) in enumerate(
            (rate, 0.3 + 0.1 * better - rate, network)
            for better, network in enumerate(NETWORKS)
            for rate in (1e-3, 1e-4)
        )
    ]
    return trials_page("networks", sorted(trials, key=lambda trial: -trial.values["f1"]), [])


def test_page_has_networks_only_if_not_all_are_unets() -> None:
    assert "Network" not in trials_page("study", [row(0), row(1)], [])
    assert "Network" not in trials_page("study", [], [])
    rows = re.findall(r'<td>(\d)</td><td class="text">(\w+)</td><td>16</td><td>([\d.]+)</td>', networks_page())
    order = [(network, rate) for network in reversed(NETWORKS) for rate in ("0.0001", "0.001")]
    assert [(int(place), (network, rate)) for place, network, rate in rows] == list(enumerate(order, start=1))


def test_page_has_no_external_address_and_escapes_names(root: Path, parent: str, tmp_path: Path) -> None:
    html = page_of(root, parent, tmp_path).read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", html)
    assert "<script>alert" not in html
    assert "diverges: StudyError: the loss is not a number" in html
    hostile = trials_page(HOSTILE, [FinishedTrial("0" * 32, HOSTILE, row(0).values)], [])
    assert "<script>alert" not in hostile


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, root: Path, parent: str, tmp_path: Path) -> Iterator[Page]:
    with open_page(browser, page_of(root, parent, tmp_path).as_uri(), request.param) as tab:
        yield tab


def centre(page: Page, axis: int) -> tuple[float, float, float]:
    """Return the horizontal centre of an axis, and its top and bottom, on the screen."""
    line = page.locator("line.axis").nth(axis)
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"], box["y"] + box["height"]


def test_page_has_a_line_and_a_row_for_each_trial(page: Page) -> None:
    assert page.locator("path.line").count() == page.locator("tbody tr").count() == 25
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    best = page.locator("tbody tr").first.locator("td").all_text_contents()
    assert best[:-1] == ["1", "16", "0.001", "32", "7", "84", "0.540"]
    shares = page.locator("path.line").evaluate_all("(lines) => lines.map((l) => l.style.getPropertyValue('--share'))")
    assert (shares[0], shares[-1]) == ("0.0%", "100.0%")  # the best is drawn last, on top


def test_network_axis_has_names_and_selects_a_network(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "trials.html"
    path.write_text(networks_page(), encoding="utf-8")
    with open_page(browser, path.as_uri(), (390, 844)) as page:
        labels = page.locator("#chart text:not(.label)")
        assert [text for text in labels.all_text_contents() if text in NETWORKS] == [*NETWORKS]
        left = labels.filter(has_text="pretrained_unet").bounding_box()
        assert left
        assert left["x"] >= 0  # the name is not cut off
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        x, top, bottom = centre(page, 0)
        page.mouse.move(x, top - 6)
        page.mouse.down()
        page.mouse.move(x, top + (bottom - top) / 4, steps=3)
        page.mouse.up()
        assert page.locator("tbody tr:visible td.text").all_text_contents() == ["pretrained_unet"] * 2


def test_range_on_an_axis_selects_trials(page: Page) -> None:
    x, top, bottom = centre(page, 5)
    page.mouse.move(x, top - 6)
    page.mouse.down()
    page.mouse.move(x, (top + bottom) / 2 + 4, steps=3)
    page.mouse.up()
    kept = page.locator("tbody tr:visible")
    assert kept.count() == page.locator("path.line:not(.out, .over)").count() == 13  # F1 from 0.42 to 0.54
    assert page.locator("#kept").text_content() == "13 of 25 shown"
    assert float(kept.last.locator("td").nth(6).text_content() or 0) == pytest.approx(0.42)
    page.mouse.click(x, (top + bottom) / 2)
    assert page.locator("tbody tr:visible").count() == 25


def test_hovering_a_line_or_row_names_the_trial(page: Page) -> None:
    x, top, _ = centre(page, 5)
    page.mouse.move(x - 2, top + 1)
    words = "1. trial 24: best epoch 7, seconds 84, validation F1 0.540"
    assert page.locator("#reading").text_content() == words
    assert page.locator("tbody tr.over td").first.text_content() == "1"
    page.locator("tbody tr").nth(2).hover()
    assert (page.locator("#reading").text_content() or "").startswith("3. trial 22:")
    assert page.locator("path.over").count() == 1
