"""The report in headless Chromium: all pictures load, nothing is logged, and a phone scrolls vertically only."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_runs import knn, make_arm

from saga_fast.cli import main
from saga_fast.loaders import ImageFolder
from saga_fast.report import write_report

PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], measured = {
    images: images.length, loaded: images.filter(i => i.complete && i.naturalWidth > 0).length,
    alt: images.filter(i => i.alt).length, plots: document.querySelectorAll("svg.plot").length,
    hidden: [...document.querySelectorAll("svg.plot")].filter(s => s.getBoundingClientRect().width < 100).length,
    wide: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor};
  const out = document.createElement("pre");
  out.id = "measured"; out.textContent = JSON.stringify(measured); document.body.append(out);
});</script>"""
FRAME = '<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0}iframe{border:0;display:block}</style>'

Browser = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """browser(page, options): the loaded page's DOM, and the console's lines. Runs offline."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("the report's test needs a browser: sudo apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *options: str) -> tuple[str, str]:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", "--hide-scrollbars", "--allow-file-access-from-files", *options]
        ran = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return ran.stdout, "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)

    return run


@pytest.fixture(scope="module")
def report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run, with all sections that a report can have."""
    folder = tmp_path_factory.mktemp("report")
    run = folder / "saga"
    shutil.copytree(finished_run, run)
    ckpt = str(run / "last.pt")
    data = _train_folder(run)
    knn = ["eval", "knn", "--ckpt", ckpt, "--data", str(data), "--k", "3"]
    assert main([*knn, "--json", str(run / "eval" / "knn.json")]) == 0
    probe = ["eval", "linear", "--ckpt", ckpt, "--data", str(data.parent), "--epochs", "1", "--lr", "0.1"]
    assert main([*probe, "--json", str(run / "eval" / "linear.json")]) == 0
    pairs = ["eval", "pairs", "--ckpt", ckpt, "--png", str(folder / "pairs.png")]
    assert main([*pairs, "--json", str(run / "eval" / "pairs.json")]) == 0
    truth = folder / "truth.csv"
    boxes = [f"{path},0.25,0.25,0.5,0.5" for path in ImageFolder(data).paths]
    truth.write_text("\n".join(["path,x_min,y_min,w,h", *boxes]))
    tables = [str(path) for path in sorted((run / "att").glob("*.safetensors"))]
    quality = ["eval", "boxes", "--table", *tables, "--data", str(data), "--truth", str(truth)]
    assert main([*quality, "--json", str(run / "eval" / "boxes.json")]) == 0
    assert main(["report", str(run), "--out", str(folder / "report.html"), "--title", "A run"]) == 0
    return folder / "report.html"


def _train_folder(run: Path) -> Path:
    match = re.search(r"train: (\S+)", (run / "config.yaml").read_text())
    assert match
    return Path(match[1])


def measure(browser: Browser, report: Path, *options: str) -> dict[str, Any]:
    """The figures of PROBE, a script that is added to a copy of the page."""
    page = report.with_name("probe.html")
    page.write_text(report.read_text(encoding="utf-8").replace("</head>", f"{PROBE}</head>", 1), encoding="utf-8")
    dom, console = browser(page, "--dump-dom", *options)
    assert console == ""
    match = re.search(r'<pre id="measured">(.*?)</pre>', dom)
    assert match
    measured: dict[str, Any] = json.loads(match[1])
    return measured


@pytest.mark.parametrize("dark", [False, True])
def test_everything_loads_and_nothing_is_logged(browser: Browser, report: Path, dark: bool) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    page = measure(browser, report, "--window-size=1280,900", *options)
    assert page["images"] == page["loaded"] == page["alt"] == 12 + 12  # pictures with boxes, and their heatmaps
    assert "Attention boxes compared with true boxes" in report.read_text(encoding="utf-8")
    assert page["plots"] >= 8
    assert page["hidden"] == 0
    assert page["wide"] <= page["window"]
    assert page["dark"] == dark
    assert (max(map(int, re.findall(r"\d+", page["paper"]))) < 64) == dark


@pytest.fixture(scope="module")
def groups_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two arms with three seeds each: means and deviations in wide cells."""
    folder = tmp_path_factory.mktemp("groups")
    arms = {"fine-tuning": None, "SAGA": {"views": "paste", "score": "background", "region": "largest"}}
    runs = [
        make_arm(folder / f"{arm}-{seed}", [knn(9, 0.5 + 0.1 * seed)], arm, seed=seed, attention=attention)
        for arm, attention in arms.items()
        for seed in range(3)
    ]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("page_fixture", ["report", "groups_report"])
def test_a_phone_scrolls_vertically_only(browser: Browser, page_fixture: str, request: pytest.FixtureRequest) -> None:
    """In a frame of a phone's width: Chromium's window has a larger minimum width."""
    report: Path = request.getfixturevalue(page_fixture)
    page = report.with_name("phone.html")
    script = """<script>addEventListener("load", () => {
      const root = frames[0].document.documentElement;
      document.title = JSON.stringify([root.scrollWidth, root.clientWidth]); });</script>"""
    page.write_text(f'{FRAME}<title></title>{script}<iframe src="report.html" width="390" height="800"></iframe>')
    dom, console = browser(page, "--dump-dom", "--window-size=600,800")
    assert console == ""
    match = re.search(r"<title>\[(\d+),(\d+)\]</title>", dom)
    assert match
    assert int(match[1]) <= int(match[2]) == 390


def test_screenshot(browser: Browser, report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    browser(report, f"--screenshot={shot}", "--window-size=1280,2000")
    with Image.open(shot) as picture:
        assert picture.size == (1280, 2000)
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 100  # text, lines and pictures: not a blank page


def test_pairs_picture(report: Path) -> None:
    with Image.open(report.with_name("pairs.png")) as picture:
        assert picture.size == (540, 480)
