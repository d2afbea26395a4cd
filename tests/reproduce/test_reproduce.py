"""``saga-fast reproduce`` on a few of the demo's images: each table and figure from its commands to its numbers."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saga_fast.cli import main
from saga_fast.report.tables import NONE
from saga_fast.reproduce.plan import Reproduction, kept_epochs, plan
from saga_fast.reproduce.results import Accuracy, results_table
from saga_fast.reproduce.targets import TARGETS, Arm
from saga_fast.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

TINY = (
    "data.generate.num_train=64",
    "data.generate.num_val=32",
    "crop.size=32",
    "batch_size=32",
    "plain.epochs=2",
    "plain.warmup_epochs=0",
    "saga.epochs=2",
    "attention.period=1",
    "evaluate.k=[20]",
)
QUICK = ("--seconds", "0.05", "--set", *TINY)


def figures(out: Path, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((out / f"{name}.json").read_text())["rows"]
    return rows


def test_table_2_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that was killed goes on where it was, and ends with the figures of one that was not."""
    words = ["reproduce", "table2", "--methods", "simclr", "--seeds", "1", *QUICK]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "saga_fast", *words, "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    second_arm = killed / "simclr" / "seed0" / "finetune" / "metrics.jsonl"
    limit = time.monotonic() + 300
    while not second_arm.exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    plain = (killed / "simclr" / "seed0" / "plain" / "last.pt").stat().st_mtime_ns
    for out in (killed, whole):
        assert main([*words, "--out", str(out)]) == 0
    assert (killed / "simclr" / "seed0" / "plain" / "last.pt").stat().st_mtime_ns == plain, "was trained again"
    assert figures(killed, "table2") == figures(whole, "table2")
    assert [row["arm"] for row in figures(whole, "table2")] == ["plain", "finetune", "saga", "supervised"]
    printed = capsys.readouterr().out
    assert "| SimCLR, paper | 50.3 | 51.1 | 53.2 | 57.1 | +2.1 |" in printed
    assert "| SimCLR, here | " in (whole / "table2.md").read_text()
    assert "5 steps, 0 done" in printed and "minutes left on" in printed

    assert main([*words, "--out", str(whole)]) == 0
    again = capsys.readouterr().out
    assert "5 steps, 5 done" in again and "left on" not in again

    arms = {path.parent.name: path for path in (whole / "simclr" / "seed0").glob("*/config.yaml")}
    assert arms.keys() == {"plain", "finetune", "saga", "supervised"}
    assert "attention: null" in arms["finetune"].read_text()
    assert "views: att" in arms["saga"].read_text()
    assert f"provider_ckpt: {whole / 'classifier' / 'last.pt'}" in arms["supervised"].read_text()
    assert not [row for row in read_metrics(whole / "simclr" / "seed0" / "plain") if row.get("phase") == "saga"]

    wrong = [*words, "--out", str(whole), "--set", "crop.size=24"]
    assert main(wrong) == 2
    assert "was trained with another crop" in capsys.readouterr().err


def test_table_1_and_figure_3_share_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--methods", "mocov2", "--plus", "--out", str(tmp_path), *QUICK, "method.queue_size=64"]
    assert main(["reproduce", "table1", *words]) == 0
    table = figures(tmp_path, "table1")
    assert [(row["arm"], row["epoch"], row["is_estimate"]) for row in table] == [
        ("plain", 2, True),
        ("finetune", 4, True),
        ("saga", 4, True),
        ("saga_plus", 4, True),
    ]
    assert "views: paste" in (tmp_path / "mocov2" / "seed0" / "saga_plus" / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["reproduce", "fig3", *words, "--dry-run"]) == 0
    commands = capsys.readouterr().out
    assert commands.count("# done: saga-fast train") == 4 and "8 steps, 8 done" in commands
    assert main(["reproduce", "fig3", *words]) == 0
    assert figures(tmp_path, "fig3") == table  # the only kept checkpoint after the plain phase is the last one
    assert (tmp_path / "fig3.png").read_bytes().startswith(b"\x89PNG")
    assert "MoCo v2, SAGA: 2: " in capsys.readouterr().out


def test_figure_4_from_a_given_checkpoint(tmp_path: Path) -> None:
    first = ["--out", str(tmp_path / "first"), *QUICK, "method.queue_size=64"]
    assert main(["reproduce", "fig4", *first]) == 0
    ckpt = tmp_path / "first" / "mocov2" / "seed0" / "plain" / "last.pt"
    second = ["--out", str(tmp_path / "second"), "--ckpt", f"mocov2={ckpt}", *QUICK, "method.queue_size=64"]
    assert main(["reproduce", "fig4", *second]) == 0
    assert not (tmp_path / "second" / "mocov2" / "seed0" / "plain").exists()
    rows = [
        json.loads((tmp_path / name / "mocov2" / "seed0" / "saga" / "eval" / "pairs.json").read_text())["rows"]
        for name in ("first", "second")
    ]
    means = [[(row["epoch"], row["views"], row["mean"]) for row in each] for each in rows]
    assert means[0] == means[1]
    assert [(epoch, views) for epoch, views, _ in means[0]] == [
        (2, "plain"),
        (2, "attention"),
        (4, "plain"),
        (4, "attention"),
    ]
    assert (tmp_path / "second" / "fig4_mocov2_seed0.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1", "--methods", "simclr"], "--methods simclr: table1 has insdis, pirl, moco, cmc, mocov2"),
        (["table2", "--ckpt", "simclr"], "--ckpt 'simclr' must be METHOD=PT"),
        (["table2", "--seeds", "0"], "--seeds must be positive, got 0"),
        (["fig3", "--set", "checkpoint.keep_every=300", "--data", "."], "keeps no checkpoint of the epochs 201 to 260"),
        (["table2", "--data", "nowhere"], "nowhere"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def paper(name: str, **changes: object) -> Reproduction:
    target = TARGETS[name]
    fields = {"data": Path("imagenet"), "methods": target.methods, "seeds": target.seeds, **changes}
    return Reproduction(name=name, target=target, out=Path("out"), **fields)  # type: ignore[arg-type]


def test_the_papers_size() -> None:
    """At the paper's epochs: the checkpoints of Fig. 3 and 4, and five seeds of Table 2."""
    curve = [step for step in plan(paper("fig3", methods=("mocov2",))) if not step.is_training]
    assert [step.words[3] for step in curve] == [
        "out/mocov2/seed0/plain/last.pt",
        *(f"out/mocov2/seed0/{arm}/epoch_{epoch:04d}.pt" for arm in ("finetune", "saga") for epoch in (220, 240, 260)),
    ]
    assert kept_epochs(curve[-1].config) == [220, 240, 260]
    (pairs,) = [step for step in plan(paper("fig4")) if not step.is_training]
    assert pairs.words[3:5] == ("out/mocov2/seed0/plain/last.pt", "out/mocov2/seed0/saga/epoch_0240.pt")
    table = plan(paper("table2"))
    assert len(table) == 1 + 5 * 2 * 4
    assert {step.config.seed for step in table[1:]} == set(range(5))


def test_cells_are_means_and_gains_are_paired() -> None:
    reproduction = paper("table2", methods=("invspread",), seeds=3)
    tuned, saga = {0: 50.0, 1: 52.0, 2: 57.0}, {0: 51.0, 1: 55.0}
    arms: dict[Arm, dict[int, float]] = {"finetune": tuned, "saga": saga}
    accuracies = [
        Accuracy(method="invspread", arm=arm, seed=seed, epoch=240, top1=top1)
        for arm, values in arms.items()
        for seed, top1 in values.items()
    ]
    accuracies.append(Accuracy(method="invspread", arm="saga", seed=2, epoch=230, top1=1.0))  # has not ended yet
    published, here = results_table(reproduction, accuracies).rows
    assert published == ("Inv. Spread, paper", "56.5", "56.7", "58.6", "62.3", "+1.9")
    deviation = statistics.stdev([50.0, 52.0, 57.0])
    assert here == (
        "Inv. Spread, here",
        NONE,
        f"53.0 ± {deviation:.1f} (3)",
        f"53.0 ± {statistics.stdev([51.0, 55.0]):.1f} (2)",
        NONE,
        f"+2.0 ± {statistics.stdev([1.0, 3.0]):.1f} (2)",
    )
