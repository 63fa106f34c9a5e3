"""The reports and MLflow pages of finished runs in a real Chromium: numbers, errors, requests, and axe-core checks.

PICTURES=docs/pictures pytest -m browser    # also updates the pictures in the README
"""

import csv
import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from runs import mlflow_server, run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(not find_spec("playwright"), reason="Playwright is not installed: `make browser` installs it"),
]
REPORTS = ("analysis", "evaluation")
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# Otherwise MLflow's assistant opens automatically and covers a quarter of each page.
NO_ASSISTANT = """if (window === window.top) {
  localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
  localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
}"""
PICTURES = os.environ.get("PICTURES")


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """A function that opens an address in a new window and records its errors and requests."""
    contexts = []

    def make(address, **options):
        context = chromium.new_context(**{"viewport": LAPTOP, **options})
        if address.startswith("http"):
            context.add_init_script(NO_ASSISTANT)
        contexts.append(context)
        page = context.new_page()
        page.errors, page.requested = [], []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()


def violations(page):
    """The violations found by axe-core, each with its rule and first occurrence."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (violation["id"], violation["nodes"][0]["html"][:200], violation["nodes"][0]["failureSummary"][:300])
        for violation in Axe().run(page).response["violations"]
    ]


def rows_of(page, heading):
    """The visible cell texts of the table below a heading."""
    section = page.locator("section", has=page.get_by_role("heading", name=heading, exact=True))
    return [row.locator("th, td").all_inner_texts() for row in section.locator("tr").all()]


def report(folder, name):
    return f"file://{folder / 'reports' / name / 'index.html'}"


def keep(page, name, **options):
    """Save a screenshot for the README if PICTURES is set."""
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), **options)


def between(page, first, last):
    """Screenshot options for keep(): from the section `first` (or the top) to the end of the section `last`."""
    boxes = {name: page.locator("section", has=page.get_by_role("heading", name=name, exact=True)).bounding_box()
             for name in (first, last) if name}  # fmt: skip
    top, end = boxes[first]["y"] if first else 0, boxes[last]["y"] + boxes[last]["height"]
    return {"clip": {"x": 130, "y": top, "width": 1020, "height": end - top}, "full_page": True}


def check_rendering(open_page, folder, name):
    """Check a report on a laptop, on a phone, in dark mode and in print."""
    for options in ({}, {"viewport": PHONE}, {"color_scheme": "dark"}):
        page = open_page(report(folder, name), **options)
        assert page.errors == []
        assert len(page.requested) == 1 and page.requested[0].startswith("file://")
        assert violations(page) == []
        excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert excess <= 0, f"{name} is {excess} pixels wider than the window"
        for link in page.locator("nav a").all():
            assert page.locator(link.get_attribute("href")).count() == 1
    page.emulate_media(media="print")
    assert violations(page) == [] and page.locator("nav").is_hidden()
    assert page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize("name", REPORTS)
def test_reports_of_the_default_recipe_render_everywhere(finished, open_page, name):
    check_rendering(open_page, finished, name)


@pytest.mark.parametrize("name", REPORTS)
def test_reports_on_real_data_render_everywhere(real, open_page, name):
    check_rendering(open_page, real, name)


def check_analysis(page, folder):
    """Check that the page shows the numbers in summary.json."""
    summary = json.loads((folder / "reports" / "analysis" / "summary.json").read_text())
    rows = summary["prepared"]["rows"]
    lead = page.locator(".lead").inner_text()
    assert lead.startswith(
        f"The dataset has {summary['num_rows']:,} rows, of which {rows['train']:,} are used for training and "
        f"{rows['validation']:,} for validation."
    )
    header, chars, tokens = rows_of(page, "Quantiles")
    for shown, name in ((chars, "chars"), (tokens, "tokens")):
        assert dict(zip(header[1:], shown[1:], strict=True)) == {
            key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in summary[name].items()
        }
    limits = [row[1:] for row in rows_of(page, "Choosing max_length")[1:]]
    assert limits == [
        [f"{limit[name]:.2%}" for name in ("rows_cut", "rows_dropped", "tokens_lost")]
        + [f"{limit['filled']:.1%}", f"{limit['cost']:.2f}"]
        for limit in summary["limits"]
    ]
    flaws = {row[0]: row[1] for row in rows_of(page, "Possible problems")[1:]}
    assert flaws == {name: f"{flaw['rows']:,}" for name, flaw in summary["flaws"].items()}
    counts = {row[0]: row[1].replace(",", "") for row in rows_of(page, "Output of prepare")[1:]}
    assert counts["training rows"] == str(summary["prepared"]["rows"]["train"])
    assert counts["loss positions in training (answers)"] == str(summary["prepared"]["tokens"]["train_loss_tokens"])
    curve = list(csv.DictReader((folder / "reports" / "analysis" / "lengths.csv").open()))
    assert int(curve[-1]["tokens"]) == summary["tokens"]["max"]
    packed = page.locator(".packed")
    assert packed.locator(".end").count() >= 1 and packed.locator(".trained").first.is_visible()


def check_evaluation(page, folder):
    """Check that the page shows the numbers in evaluate.json and groups.json and the answers in generations.jsonl."""
    scores = json.loads((folder / "metrics" / "evaluate.json").read_text())
    lead = page.locator(".lead").inner_text()
    assert lead.startswith("The adapter is better than its base")
    assert f"validation loss {scores['adapter']['loss']:.3f} against {scores['base']['loss']:.3f}" in lead
    for row in rows_of(page, "Validation scores")[1:]:
        for shown, (name, value) in zip(row[1:], scores[row[0]].items(), strict=True):
            percent = shown.endswith("%")
            assert percent == (name in ("token_accuracy", "exact_match"))
            number = float(shown.rstrip("%").replace(",", "")) / (100 if percent else 1)
            rounded = {"perplexity": 0.005, "chrf": 0.05}.get(name, 0.0005)
            assert number == pytest.approx(value, abs=rounded)
    groups = groups_of(folder)
    losses, matches = groups["loss_by_length"], groups["exact_match_by_length"]
    assert len(losses) == 4 and rows_of(page, "Loss by length")[1:] == [
        [name, f"{group['rows']:,}", f"{group['base']:.3f}", f"{group['adapter']:.3f}", f"{group['gain']:.3f} lower",
         f"{group['low']:.3f} to {group['high']:.3f}"]
        for name, group in losses.items()
    ]  # fmt: skip
    assert [row[:4] for row in rows_of(page, "Exact match by length")[1:]] == [
        [name, f"{group['rows']:,}", f"{group['base']:.1%}", f"{group['adapter']:.1%}"]
        for name, group in matches.items()
    ]
    lines = (folder / "reports" / "evaluation" / "generations.jsonl").read_text().splitlines()
    references = [json.loads(line)["completion"].split() for line in lines]
    shown = [row[1].split() for row in rows_of(page, "Sample answers")[1:]]
    assert shown == references[: len(shown)] and shown


def test_reports_of_the_default_recipe_show_the_numbers_of_the_json_files(finished, open_page):
    page = open_page(report(finished, "analysis"))
    check_analysis(page, finished)
    keep(page, "analysis", **between(page, None, "First rows"))
    page = open_page(report(finished, "evaluation"))
    check_evaluation(page, finished)
    keep(page, "evaluation", **between(page, None, "Loss by category"))


def test_reports_on_real_data_show_the_numbers_of_the_json_files(real, open_page):
    page = open_page(report(real, "analysis"))
    check_analysis(page, real)
    if real.name == "real-alpaca":
        keep(page, "alpaca", **between(page, "Length in characters", "Choosing max_length"))
    check_evaluation(open_page(report(real, "evaluation")), real)


@pytest.fixture(scope="session")
def served(swept):
    """An MLflow server on the store of the default run and its DVC experiment, as `make mlflow-ui` starts it."""
    with mlflow_server(swept / "mlflow" / "mlflow.db", swept / "mlflow" / "artifacts") as address:
        yield address, swept


@pytest.fixture
def ui(served, open_page):
    """A function that opens a page of MLflow's UI with the assistant closed, and the recipe folder."""
    address, folder = served

    def make(path, **options):
        return open_page(path if path.startswith("http") else f"{address}/{path}", **options)

    return make, folder


def scores_of(folder):
    return json.loads((folder / "metrics" / "evaluate.json").read_text())


def groups_of(folder):
    return json.loads((folder / "reports" / "evaluation" / "groups.json").read_text())


def last_run(served):
    address, folder = served
    return run(folder, "recipe", "link", "--server", address).strip()


def test_run_page_shows_what_was_trained_and_whether_it_is_better(served, ui):
    make, folder = ui
    page, scores = make(last_run(served)), scores_of(folder)
    sort = groups_of(folder)["exact_match_by_category"]["sort"]["adapter"]
    page.get_by_role("heading", name="demo/rows on demo-base, r16 lr0.003 len256").wait_for()
    page.get_by_text(f"validation loss {scores['adapter']['loss']:.3f} against").first.wait_for()
    page.get_by_text("recipe-demo").first.wait_for()
    for name, value in (("eval/adapter/loss", scores["adapter"]["loss"]),
                        ("eval/difference/exact_match", scores["difference"]["exact_match"]),
                        ("eval/exact_match_by_category/sort", sort)):  # fmt: skip
        page.get_by_placeholder("Search metrics").fill(name)
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        assert float(row.get_by_role("cell").nth(1).inner_text()) == pytest.approx(value)
    page.get_by_placeholder("Search metrics").fill("")
    keep(page, "run")
    assert all(url.startswith(served[0]) for url in page.requested if not url.startswith(("data:", "blob:")))


def test_charts_are_grouped(served, ui):
    page = ui[0](last_run(served).replace("?", "/model-metrics?"), viewport={"width": 1280, "height": 1000})
    for group in ("eval/adapter", "eval/difference", "train"):
        page.get_by_text(group, exact=True).wait_for()
    train = page.get_by_text("train", exact=True)
    for _ in range(3):  # the charts above are drawn when they come into view and then move this group
        train.evaluate("element => element.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(500)
    page.locator(".main-svg").last.wait_for()
    keep(page, "charts")
    system = ui[0](last_run(served).replace("?", "/system-metrics?"))
    system.get_by_text("cpu_utilization_percentage").first.wait_for()


def test_reports_charts_and_answers_open_in_the_ui(served, ui):
    make, folder = ui
    page = make(last_run(served))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("evaluation", exact=True).click()
    page.get_by_text("index.html", exact=True).click()
    lead = page.frame_locator("iframe").locator(".lead")
    lead.wait_for()
    assert lead.inner_text().startswith("The adapter is better than its base")
    page.get_by_text("analysis", exact=True).click()
    page.get_by_text("tokens.svg", exact=True).click()
    chart = page.get_by_alt_text("analysis/tokens.svg")
    chart.wait_for()
    assert chart.evaluate("image => image.complete && image.naturalWidth") > 300
    page.get_by_text("generations.json", exact=True).click()
    page.get_by_text("adapter is right").first.wait_for()
    line = json.loads((folder / "reports" / "evaluation" / "generations.jsonl").read_text().splitlines()[0])
    page.get_by_text(line["adapter"].strip(), exact=True).first.wait_for()


def test_two_runs_can_be_compared(served, ui):
    from mlflow import MlflowClient

    make, folder = ui
    client = MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("recipe-demo").experiment_id
    runs = [run.info.run_id for run in client.search_runs([experiment]) if "sweep" not in run.data.tags]
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    page = make(f"#/compare-runs?{query}&workflowType=machine_learning", viewport={"width": 1280, "height": 1300})
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    for rank in (4, 16):
        page.get_by_text(f"demo/rows on demo-base, r{rank} lr0.003 len256").first.wait_for()
    page.get_by_role("switch").first.click()  # "Show diff only" for the params
    page.get_by_text("data.sha256", exact=True).wait_for(state="detached")
    assert [name for name in ("lora.r", "lora.alpha") if page.get_by_text(name, exact=True).last.is_visible()] == [
        "lora.r"
    ]
    keep(page, "compare")
    page = make(f"#/experiments/{experiment}/runs?workflowType=machine_learning")
    page.get_by_text(re.compile("^sweep from ")).first.wait_for()


def test_registered_version_has_its_numbers_alias_and_lineage(served, ui):
    make, folder = ui
    scores = scores_of(folder)
    page = make("#/models/recipe-demo/versions/1?workflowType=machine_learning")
    page.get_by_text(f"validation loss {scores['adapter']['loss']:.3f} against").first.wait_for()
    page.get_by_text("@ champion").first.wait_for()
    for tag, value in (("validation_loss", f"{scores['adapter']['loss']:.6f}"), ("base_id", "demo-base"),
                       ("git_commit", run(folder, "git", "rev-parse", "HEAD").strip())):  # fmt: skip
        row = page.get_by_role("row").filter(has=page.get_by_text(tag, exact=True))
        assert value in row.inner_text()
    page.get_by_role("link", name="adapter", exact=True).first.wait_for()  # the source model, which loads last
    keep(page, "model")
