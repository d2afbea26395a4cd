"""Arms and groups of runs: means over seeds in the tables and in the verdict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_runs import Page, epoch, knn, make_arm, make_run, render, renewal
from test_report_evaluations import evaluated, linear

from saga_fast.report.accuracies import spread
from saga_fast.report.group_table import group_table
from saga_fast.report.groups import arm, group_runs, is_from_scratch
from saga_fast.report.paper import paper_tables
from saga_fast.report.runs import Run, read_runs
from saga_fast.report.tables import NONE
from saga_fast.report.verdict import judge

PLUS = {"views": "paste", "score": "background"}


def seeds(root: Path, name: str, tops: Mapping[int, float], arm: str = "SAGA", **config: object) -> list[Path]:
    """One run per seed, with its top-1 at epoch 9."""
    return [make_arm(root / f"{name}-{seed}", [knn(9, top)], arm, seed=seed, **config) for seed, top in tops.items()]


def ours(runs: list[Run], table: int = 1) -> list[tuple[str, ...]]:
    """The rows of one of the paper's tables that are not published ones."""
    return [row for row in paper_tables(runs)[table].rows if "here" in row[0]]


@pytest.mark.parametrize(
    ("attention", "saga_epochs", "name"),
    [
        (None, 0, "plain"),
        ({"views": "att"}, 0, "plain"),
        (None, 60, "fine-tuning"),
        ({"period": 2, "delta": 0.5, "precision": "bf16", "input_size": 96}, 60, "SAGA"),
        ({"provider": "self", "score": "pseudo_label", "views": "att", "share": 0.5}, 60, "SAGA"),
        (PLUS, 60, "SAGA, paste, background"),
        ({**PLUS, "region": "largest", "share": 0.7}, 60, "SAGA, paste, background, largest region"),
        ({"crop": "centred", "min_side": 0.3, "mirror": True}, 60, "SAGA, centred crops, mirror, min_side 0.3"),
        ({"provider": "supervised", "provider_ckpt": "x.pt"}, 60, "supervised attention"),
        ({"provider": "table", "provider_table": "x.safetensors"}, 60, "given boxes"),
    ],
)
def test_arm(tmp_path: Path, attention: dict[str, Any] | None, saga_epochs: int, name: str) -> None:
    """The config decides, and not the folder's name."""
    config = {"attention": attention, "saga": {"epochs": saga_epochs}}
    assert arm(read_runs([make_run(tmp_path / "finetune", [epoch(1)], **config)])[0]) == name


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({"seed": 1, "out": "b", "device": "cuda"}, True),
        ({"data": {"threads": 8, "prefetch": 4, "train": "a"}}, True),
        ({"checkpoint": {"keep_every": 2, "every_steps": None}}, True),
        ({"attention": {"views": "att", "period": 10, "region": "all"}}, True),
        ({"attention": {"views": "att", "period": 2}}, False),
        ({"batch_size": 32}, False),
        ({"data": {"threads": 2, "train": "b"}}, False),
        ({"method": {"name": "simclr", "temperature": 0.1}}, False),
    ],
)
def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path, change: dict[str, Any], equal: bool) -> None:
    """Options that an older config lacks have their defaults."""
    config = {"seed": 0, "out": "a", "device": "cpu", "data": {"threads": 2, "train": "a"}, "batch_size": 64}
    first = make_arm(tmp_path / "a", [knn(9, 0.6)], **config)
    second = make_arm(tmp_path / "b", [knn(9, 0.6)], **{**config, "seed": 1, **change})
    groups = group_runs(read_runs([first, second]))
    assert [len(group.runs) for group in groups] == ([2] if equal else [1, 1])
    assert len({group.name for group in groups}) == len(groups)


def test_groups_with_one_arm_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    runs = [make_arm(tmp_path / str(size), [knn(9, 0.6)], batch_size=size) for size in (32, 64)]
    assert [group.name for group in group_runs(read_runs(runs))] == [
        "SimCLR, SAGA, batch_size 32",
        "SimCLR, SAGA, batch_size 64",
    ]


def test_a_groups_name_has_no_absolute_path(tmp_path: Path) -> None:
    runs = [make_arm(tmp_path / s, [knn(9, 0.6)], data={"train": f"/home/me/{s}/x/train"}) for s in ("a", "b")]
    assert [group.name for group in group_runs(read_runs(runs))] == ["SimCLR, SAGA, a", "SimCLR, SAGA, b"]


def test_spread_is_the_sample_deviation() -> None:
    assert spread([18.8]) == "18.8 (1)"
    assert spread([18.0, 20.0, 25.0]) == "21.0 ± 3.6 (3)"
    assert spread([-1.0, 3.0], sign=True) == "+1.0 ± 2.8 (2)"


def test_paper_tables_have_means_over_seeds(tmp_path: Path) -> None:
    paths = [
        *seeds(tmp_path, "plain", {0: 0.4}, "plain"),
        *seeds(tmp_path, "tuned", {0: 0.5, 1: 0.54}, "fine-tuning"),
        *seeds(tmp_path, "saga", {0: 0.55, 1: 0.60, 2: 0.65}),
        *seeds(tmp_path, "supervised", {0: 0.7}, attention={"provider": "supervised"}),
    ]
    for path, top in zip(paths[3:5], (0.2, 0.3), strict=True):
        evaluated(path, "linear", linear(9, top))
    runs = read_runs(paths)
    cells = ("40.0 (1)", "52.0 ± 2.8 (2)", "60.0 ± 5.0 (3)", "70.0 (1)")
    assert ours(runs) == [("SimCLR, here", *cells)]
    assert ours(runs, table=0) == [("SimCLR, here", NONE, NONE, "25.0 ± 7.1 (2)")]


def test_probes_of_different_protocols_are_not_averaged(tmp_path: Path) -> None:
    paths = seeds(tmp_path, "saga", {0: 0.55, 1: 0.60})
    evaluated(paths[0], "linear", linear(9, 0.2))
    evaluated(paths[1], "linear", linear(9, 0.3, features="cached"))
    assert ours(read_runs(paths), table=0) == [("SimCLR, here", NONE, NONE, "20.0 (1) / ≈\u200930.0 (1)")]


def test_other_attention_has_a_row_of_its_own(tmp_path: Path) -> None:
    """The column SAGA has only the paper's reading; the column of further arms is there if one has a figure."""
    runs = read_runs([*seeds(tmp_path, "saga", {0: 0.55}), *seeds(tmp_path, "plus", {0: 0.6, 1: 0.7}, attention=PLUS)])
    table = paper_tables(runs)[1]
    assert table.head[-1] == "Other attention"
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert ours(runs) == [
        ("SimCLR, here", NONE, NONE, "55.0 (1)", NONE, NONE),
        ("SimCLR, here, SAGA with paste, background", NONE, NONE, NONE, NONE, "65.0 ± 7.1 (2)"),
    ]
    assert "Other attention" not in paper_tables(runs)[0].head


def one_run(folder: Path, after: float | None, **config: object) -> Path:
    """A run with two plain epochs and, unless ``after`` is None, one more."""
    records = [knn(0, 0.2), epoch(1), epoch(2), knn(2, 0.4)]
    more = [] if after is None else [epoch(3, phase="saga"), knn(3, after)]
    return make_arm(folder, [*records, *more], **config)


def test_plain_epochs_in_the_same_run(tmp_path: Path) -> None:
    """The first column is the evaluation at the end of the plain phase, in a row that says so."""
    paths = [
        *seeds(tmp_path, "plain", {0: 0.3}, "plain"),
        one_run(tmp_path / "whole", 0.6, seed=0),
        one_run(tmp_path / "stopped", None, seed=1),
    ]
    evaluated(paths[1], "linear", linear(2, 0.25), linear(3, 0.5))
    runs = read_runs(paths)
    assert [is_from_scratch(run) for run in runs] == [False, True, True]
    assert ours(runs) == [
        ("SimCLR, here", "30.0 (1)", NONE, NONE, NONE),
        ("SimCLR, here, SAGA, plain epochs in the same run", "40.0 ± 0.0 (2)", NONE, "60.0 (1)", NONE),
    ]
    assert ours(runs, table=0) == [("SimCLR, here, SAGA, plain epochs in the same run", "25.0 (1)", NONE, "50.0 (1)")]


def test_the_start_checkpoints_figure_is_not_the_arms(tmp_path: Path) -> None:
    tuned = make_arm(tmp_path / "tuned", [knn(2, 0.5), epoch(3, phase="saga"), knn(9, 0.6)], "fine-tuning")
    started = make_arm(tmp_path / "started", [knn(2, 0.5)])
    runs = read_runs([tuned, started])
    assert ours(runs) == [("SimCLR, here", NONE, "60.0 (1)", NONE, NONE)]
    verdict = judge(runs)
    assert verdict.outcome == "none"
    sentence = "SimCLR, SAGA (started): no kNN evaluation (backbone, k = 20) of its own epochs."
    assert verdict.details == (verdict.details[0], sentence)


def test_gains_are_paired_by_seed(tmp_path: Path) -> None:
    """Seeds differ by 20 points, gains by 1: the deviation is that of the gains."""
    tuned = seeds(tmp_path, "tuned", {0: 0.40, 1: 0.60, 2: 0.50, 7: 0.10}, "fine-tuning")
    guided = seeds(tmp_path, "saga", {0: 0.44, 1: 0.65, 2: 0.56, 5: 0.99})
    verdict = judge(read_runs([*tuned, *guided]))
    assert verdict.headline == "SAGA wins: SimCLR, SAGA ends 5.0 ± 1.0 points above fine-tuning (3 seeds)."
    assert verdict.outcome == "win"
    lonely = [line for line in verdict.details if "no partner" in line]
    assert lonely == [
        "saga-5 has no partner: no run with seed 5 counts in SimCLR, fine-tuning.",
        "tuned-7 has no partner: no run with seed 7 counts in SimCLR, SAGA.",
    ]


def test_gains_that_scatter_are_noise(tmp_path: Path) -> None:
    """Gains of 0 and 8 points: a mean of 4, but a 95 % interval of 50.8 points with two seeds."""
    tuned = seeds(tmp_path, "tuned", {0: 0.40, 1: 0.40}, "fine-tuning")
    verdict = judge(read_runs([*tuned, *seeds(tmp_path, "saga", {0: 0.40, 1: 0.48})]))
    assert verdict.outcome == "open"
    assert "within noise of fine-tuning (+4.0 ± 5.7 points, noise 50.8, 2 seeds)" in verdict.headline


def test_seeds_without_a_pair_are_not_compared(tmp_path: Path) -> None:
    tuned = seeds(tmp_path, "tuned", {0: 0.40}, "fine-tuning")
    verdict = judge(read_runs([*tuned, *seeds(tmp_path, "saga", {1: 0.48})]))
    assert verdict.headline == "No verdict: SimCLR, SAGA and SimCLR, fine-tuning have no seed in common."
    assert sum("no partner" in line for line in verdict.details) == 2


def test_methods_are_never_compared(tmp_path: Path) -> None:
    moco = {"method": {"name": "moco"}}
    tuned = make_arm(tmp_path / "finetune", [knn(9, 0.3)], "fine-tuning", **moco)
    guided = make_arm(tmp_path / "saga", [knn(9, 0.9)])
    verdict = judge(read_runs([tuned, guided]))
    assert (verdict.outcome, verdict.headline) == ("none", "No verdict: no fine-tuning run of SimCLR.")
    both = judge(read_runs([tuned, guided, make_arm(tmp_path / "moco", [knn(9, 0.2)], **moco)]))
    assert both.outcome == "loss"
    assert "2 SAGA groups, 0 above fine-tuning, 1 below, 0 within noise, 1 not compared" in both.headline
    assert any("SimCLR, SAGA (saga)" in line and "not compared: no fine-tuning run" in line for line in both.details)


def test_supervised_attention_does_not_count_as_saga(tmp_path: Path) -> None:
    tuned = make_arm(tmp_path / "tuned", [knn(9, 0.5)], "fine-tuning")
    boxes = make_arm(tmp_path / "boxes", [knn(9, 0.4)], attention={"provider": "supervised"})
    verdict = judge(read_runs([tuned, boxes, make_arm(tmp_path / "saga", [knn(9, 0.6)])]))
    assert verdict.headline == "SAGA wins: SimCLR, SAGA ends 10.0 points above fine-tuning (one seed)."
    assert "SimCLR, supervised attention (boxes): kNN top-1 40.0 % at epoch 9; 10.0 points below" in verdict.details[1]


def test_the_baseline_has_the_most_similar_config(tmp_path: Path) -> None:
    """A name has no effect, and a baseline that differs in more than attention is a caveat."""
    far = make_arm(tmp_path / "finetune", [knn(9, 0.9)], "fine-tuning", batch_size=512)
    near = make_arm(tmp_path / "near", [knn(9, 0.5)], "fine-tuning", batch_size=64)
    guided = make_arm(tmp_path / "saga", [knn(9, 0.6)], batch_size=64)
    verdict = judge(read_runs([far, near, guided]))
    assert "10.0 points above" in verdict.headline
    assert not any("differ in more" in line for line in verdict.details)
    caveat = "SimCLR, SAGA and SimCLR, fine-tuning differ in more than attention: batch_size."
    assert caveat in judge(read_runs([far, guided])).details


def test_runs_that_do_not_count_are_named(tmp_path: Path) -> None:
    """A seed that is behind the others, and one that is there twice."""
    paths = seeds(tmp_path, "saga", {0: 0.5, 1: 0.6})
    paths += [make_arm(tmp_path / "late", [knn(5, 0.1)], seed=2), make_arm(tmp_path / "again", [knn(9, 0.1)], seed=0)]
    runs = read_runs(paths)
    assert ours(runs) == [("SimCLR, here", NONE, NONE, "55.0 ± 7.1 (2)", NONE)]
    details = judge(runs).details
    assert "late is not in the mean of SimCLR, SAGA: last evaluated at epoch 5, not 9." in details
    assert "again does not count: SimCLR, SAGA already has a run with seed 0." in details


def test_runs_without_a_config(tmp_path: Path) -> None:
    """Their records tell the arm; none is a seed of another one, and none is taken for the paper's reading."""
    tuned = make_run(tmp_path / "old-tuned", [knn(2, 0.4), epoch(3, phase="saga"), knn(3, 0.5)])
    guided = make_run(tmp_path / "old-saga", [renewal(2), epoch(3, phase="saga"), knn(3, 0.6)])
    for path in (tuned, guided):
        (path / "config.yaml").unlink()
    known = make_arm(tmp_path / "saga", [knn(9, 0.9)])
    runs = read_runs([tuned, guided, known])
    assert [arm(run) for run in runs] == ["fine-tuning", "SAGA, unknown options", "SAGA"]
    assert [row[0] for row in ours(runs)] == [
        "unknown method, here",
        "unknown method, here, SAGA with unknown options",
        "SimCLR, here",
    ]
    verdict = judge(runs)
    assert verdict.headline.startswith("SAGA wins: 2 SAGA groups, 1 above fine-tuning")
    assert verdict.headline.endswith("1 not compared.")
    lacking = "has no config: its arm is read from its records, its method and seed are unknown."
    assert {f"{name} {lacking}" for name in ("old-tuned", "old-saga")} <= set(verdict.details)


def test_runs_without_a_config_are_not_seeds_of_one_group(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, [epoch(1), knn(1, 0.5)]) for name in ("a", "b")]
    for path in paths:
        (path / "config.yaml").unlink()
    assert [group.name for group in group_runs(read_runs(paths))] == [f"unknown method, plain, {n}" for n in ("a", "b")]


def test_group_table_is_on_the_page_of_several_seeds(tmp_path: Path) -> None:
    tuned = seeds(tmp_path, "tuned", {0: 0.40, 1: 0.50}, "fine-tuning")
    guided = seeds(tmp_path, "saga", {0: 0.45, 1: 0.56})
    table = group_table(read_runs([*tuned, *guided]))
    assert table
    assert table.rows == (
        ("SimCLR, fine-tuning", "45.0 ± 7.1 (2)", NONE, NONE, "9", "tuned-0, tuned-1"),
        ("SimCLR, SAGA", "50.5 ± 7.8 (2)", "+5.5 ± 0.7 (2)", NONE, "9", "saga-0, saga-1"),
    )
    text = Page(render([*tuned, *guided], tmp_path / "report.html")).text
    assert table.caption in text
    assert "+5.5 ± 0.7 (2)" in text
    assert group_table(read_runs([tuned[0], guided[1]])) is None
    assert table.caption not in Page(render([tuned[0], guided[1]], tmp_path / "single.html")).text
