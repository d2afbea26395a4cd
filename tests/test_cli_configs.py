"""``saga-fast configs``, and ``--config`` with the name of a shipped config."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from saga_fast.cli import main
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.configs import ROOT, find_config, first_sentence, shipped_configs
from saga_fast.errors import SagaError

Refuses = Callable[..., None]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: what a user of the wheel has."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---------------------------------------------------------------- saga-fast configs


def test_list_has_every_config_with_its_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {path.relative_to(ROOT).as_posix().removesuffix(".yaml") for path in ROOT.rglob("*.yaml")}
    assert {"demo", "demo_plus", "imagenet/mocov2", "imagenet100/simclr_plus"} <= set(lines)
    assert lines["demo"].startswith("The demo: SimCLR on 2,000 made images of 72 px")
    assert lines["imagenet100/invspread"].endswith("62.3 with a classifier's attention.")
    assert lines["demo_invspread"].endswith("all others of the batch repel.")


@pytest.mark.parametrize("name", shipped_configs())
def test_first_sentence_is_whole(name: str) -> None:
    sentence = first_sentence(shipped_configs()[name])
    assert 30 < len(sentence) < 200 and sentence.endswith(".") and ". " not in sentence.replace("Inv. ", "")


@pytest.mark.parametrize("name", ["demo", "imagenet/mocov2"])
def test_name_prints_the_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", name]) == 0
    assert capsys.readouterr().out == (ROOT / f"{name}.yaml").read_text()


def test_unknown_name_suggests_others(refuses: Refuses, tmp_path: Path) -> None:
    refuses(["configs", "demoo"], "no shipped config has the name demoo", "saga-fast configs", "did you mean demo")
    refuses(["configs", "mocov3", "--copy", tmp_path / "out"], "imagenet/mocov2")
    refuses(["configs", "configs/demo.yaml"], "did you mean demo?")
    refuses(["configs", "../demo"], "did you mean demo?")
    assert not (tmp_path / "out").exists()


def test_copy_one(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "imagenet/mocov2", "--copy", "mine"]) == 0
    assert capsys.readouterr().out == "mine/imagenet/mocov2.yaml\n"
    assert [path for path in empty.rglob("*") if path.is_file()] == [empty / "mine" / "imagenet" / "mocov2.yaml"]
    assert (empty / "mine/imagenet/mocov2.yaml").read_bytes() == (ROOT / "imagenet/mocov2.yaml").read_bytes()


def test_copy_all_repeated_and_refused(empty: Path, refuses: Refuses, capsys: pytest.CaptureFixture[str]) -> None:
    changed = empty / "imagenet" / "cmc.yaml"
    changed.parent.mkdir()
    changed.write_text("out: mine\n")
    refuses(["configs", "--copy", "."], "imagenet/cmc.yaml", "--copy DIR")
    assert [path for path in empty.rglob("*") if path.is_file()] == [changed]  # none, not some
    assert changed.read_text() == "out: mine\n"
    changed.unlink()
    for _ in range(2):  # equal files are no obstacle
        assert main(["configs", "--copy", "."]) == 0
        assert capsys.readouterr().out.split() == [f"{name}.yaml" for name in shipped_configs()]
    for name, path in shipped_configs().items():
        assert (empty / f"{name}.yaml").read_bytes() == path.read_bytes()


def test_copy_into_a_file_or_onto_a_folder(empty: Path, refuses: Refuses) -> None:
    (empty / "file").touch()
    refuses(["configs", "demo", "--copy", "file"], "file")
    (empty / "demo.yaml").mkdir()
    refuses(["configs", "demo", "--copy", "."], "demo.yaml exists")


# ---------------------------------------------------------------- --config NAME


def small(images: Path) -> list[str]:
    """Overrides that make the demo's config one epoch of five steps."""
    data = f"data={{train: {images / 'train'}, val: null}}"
    return ["--set", data, "plain={epochs: 1, lr: 0.002}", "saga.epochs=0", "crop.size=32", "batch_size=8"]


def test_train_takes_a_name(empty: Path, images: Path) -> None:
    assert main(["train", "--config", "demo", "--out", "run", *small(images)]) == 0
    config = load_config(empty / "run" / "config.yaml")
    assert config.method == load_config(ROOT / "demo.yaml").method
    assert config.batch_size == 8


@pytest.mark.usefixtures("empty")
def test_profile_takes_a_name(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", "train", "--config", "demo", "--seconds", "0.1", "--engine", "folder", *small(images)]
    assert main(arguments) == 0
    assert "is the bottleneck" in capsys.readouterr().out


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", shipped_configs())
def test_every_name_is_found(name: str) -> None:
    assert find_config(Path(name)) == ROOT / f"{name}.yaml"


def test_file_wins_and_a_folder_does_not(empty: Path) -> None:
    (empty / "demo").mkdir()
    assert find_config(Path("demo")) == ROOT / "demo.yaml"
    assert find_config(empty) == empty  # load_config says that it is a folder
    (empty / "demo_plus").write_text("out: mine\n")
    assert find_config(Path("demo_plus")) == Path("demo_plus")


def test_file_with_a_shipped_name_is_trained(empty: Path, tiny_yaml: Path) -> None:
    config = load_config(tiny_yaml, ["saga.epochs=0", "evaluate=null"])
    (empty / "demo").write_text(yaml.safe_dump(config_to_dict(config)))
    assert main(["train", "--config", "demo", "--out", "run"]) == 0
    assert load_config(empty / "run" / "config.yaml").encoder == config.encoder


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("command", [["train"], ["profile", "train"]], ids=" ".join)
def test_missing_config_is_one_line(command: list[str], refuses: Refuses) -> None:
    words = ("saga-fast configs", "did you mean")
    refuses([*command, "--config", "demoo"], "cannot read the config demoo: No such file", *words, "demo_moco")
    refuses([*command, "--config", "imagenet/mocov3"], *words, "imagenet/mocov2")
    refuses([*command, "--config", "mocov2"], "did you mean imagenet/mocov2?")
    refuses([*command, "--config", "configs/demo.yaml"], "cannot read the config configs/demo.yaml: No such file")
    refuses([*command, "--config", "configs/demo.yaml"], "--config demo")
    refuses([*command, "--config", "configs/imagenet/mocov2.yaml"], "--config imagenet/mocov2")
    refuses([*command, "--config", "x" * 300], "File name too long")


@pytest.mark.usefixtures("empty")
def test_hint_is_only_given_where_it_helps() -> None:
    with pytest.raises(SagaError) as caught:
        find_config(Path("mine.yaml"))
    assert str(caught.value) == "cannot read the config mine.yaml: No such file or directory"
    with pytest.raises(SagaError, match=r"see saga-fast configs$"):
        find_config(Path("zzz"))


def test_output_that_is_the_shipped_config_is_refused(refuses: Refuses) -> None:
    refuses(["profile", "train", "--config", "demo", "--json", ROOT / "demo.yaml"], "the command reads it")
