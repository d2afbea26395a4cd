"""The report in headless Chromium: every picture loads, nothing is logged, and a phone scrolls one way only."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.loaders import ImageFolder

PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], found = {
    images: images.length, loaded: images.filter(i => i.complete && i.naturalWidth > 0).length,
    alt: images.filter(i => i.alt).length, plots: document.querySelectorAll("svg.plot").length,
    hidden: [...document.querySelectorAll("svg.plot")].filter(s => s.getBoundingClientRect().width < 100).length,
    wide: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor};
  const out = document.createElement("pre");
  out.id = "found"; out.textContent = JSON.stringify(found); document.body.append(out);
});</script>"""
FRAME = '<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0}iframe{border:0;display:block}</style>'

Browser = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """browser(page, options): the page's DOM once loaded, and what was logged. Runs offline."""
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
    """The report of a finished run with everything in it that a report can show."""
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
    true = ["eval", "boxes", "--table", *tables, "--data", str(data), "--truth", str(truth)]
    assert main([*true, "--json", str(run / "eval" / "boxes.json")]) == 0
    assert main(["report", str(run), "--out", str(folder / "report.html"), "--title", "A run"]) == 0
    return folder / "report.html"


def _train_folder(run: Path) -> Path:
    found = re.search(r"train: (\S+)", (run / "config.yaml").read_text())
    assert found
    return Path(found[1])


def look(browser: Browser, report: Path, *options: str) -> dict[str, Any]:
    """What a script in a copy of the page sees; the page itself has none."""
    page = report.with_name("probe.html")
    page.write_text(report.read_text(encoding="utf-8").replace("</head>", f"{PROBE}</head>", 1), encoding="utf-8")
    dom, console = browser(page, "--dump-dom", *options)
    assert console == ""
    found = re.search(r'<pre id="found">(.*?)</pre>', dom)
    assert found
    seen: dict[str, Any] = json.loads(found[1])
    return seen


@pytest.mark.parametrize("dark", [False, True])
def test_everything_loads_and_nothing_is_logged(browser: Browser, report: Path, dark: bool) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    seen = look(browser, report, "--window-size=1280,900", *options)
    assert seen["images"] == seen["loaded"] == seen["alt"] == 12 + 12  # pictures with boxes, and their heatmaps
    assert "Boxes beside true boxes" in report.read_text(encoding="utf-8")
    assert seen["plots"] >= 8
    assert seen["hidden"] == 0
    assert seen["wide"] <= seen["window"]
    assert seen["dark"] == dark
    assert (max(map(int, re.findall(r"\d+", seen["paper"]))) < 64) == dark


def test_a_phone_scrolls_one_way_only(browser: Browser, report: Path) -> None:
    """In a frame of a phone's width: the window itself cannot be made so narrow."""
    page = report.with_name("phone.html")
    script = """<script>addEventListener("load", () => {
      const root = frames[0].document.documentElement;
      document.title = JSON.stringify([root.scrollWidth, root.clientWidth]); });</script>"""
    page.write_text(f'{FRAME}<title></title>{script}<iframe src="report.html" width="390" height="800"></iframe>')
    dom, console = browser(page, "--dump-dom", "--window-size=600,800")
    assert console == ""
    found = re.search(r"<title>\[(\d+),(\d+)\]</title>", dom)
    assert found
    assert int(found[1]) <= int(found[2]) == 390


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
