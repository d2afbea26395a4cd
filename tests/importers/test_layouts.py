"""Every project's layout: imported through the command line, it gives the z that the project's network gave."""

from pathlib import Path

import pytest
import torch
from import_runs import run_import
from layout_parts import Layout
from layouts import LAYOUTS

from saga_fast import load_model
from saga_fast.checkpoint import checkpoint_config, read_checkpoint
from saga_fast.cli import main
from saga_fast.importers import FORMATS
from saga_fast.loaders import BoxTable


def test_every_format_has_a_layout() -> None:
    assert {name.split()[0] for name in LAYOUTS} | {"timm"} == set(FORMATS)


def assert_imported(layout: Layout, out: Path) -> None:
    """The checkpoint gives the source's z and holds its banks, queues and numbers."""
    model = load_model(out)
    assert model.method == layout.method
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(9))
    branches = model.branches(x)
    assert len(branches) == len(layout.z)
    with torch.no_grad():
        for branch, z in zip(branches, layout.z, strict=True):
            found = branch.projector(branch.encoder(branch.images))
            assert found.std() > 0.05
            torch.testing.assert_close(found, z(branch.images), rtol=1e-5, atol=1e-5)
    own = model.state_dict()
    for name, tensor in layout.expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    method = checkpoint_config(read_checkpoint(out), out).method
    for name, value in layout.numbers.items():
        default = getattr(method, name)
        assert default == value or (default is None and name == "hidden_dim")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS[name]()
    ckpt, out, table = tmp_path / "theirs.pth.tar", tmp_path / "ours.pt", tmp_path / "att.safetensors"
    torch.save(layout.content, ckpt)
    assert main(["import", str(ckpt), "--out", str(out), "--data", str(images / "train")]) == 0
    printed = capsys.readouterr().out
    assert name.split()[0] == layout.format
    assert printed.startswith(f"{ckpt}: {layout.format} (")
    for words in (layout.method, *layout.printed):
        assert words in printed
    assert_imported(layout, out)
    size = ["--size", "32", "--batch-size", "41", "--threads", "1"]
    assert main(["build-att", "--ckpt", str(out), "--out", str(table), *size]) == 0
    assert len(BoxTable.open(table)) == 41


@pytest.mark.parametrize("name", ["pycontrast insdis", "moco v1 released", "invspread"])
def test_old_torch_format(name: str, tmp_path: Path) -> None:
    """Before torch 1.6 files were no zip archives."""
    layout = LAYOUTS[name]()
    torch.save(layout.content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_imported(layout, run_import(tmp_path / "old.pth", tmp_path))
