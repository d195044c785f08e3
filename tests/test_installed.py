"""The wheel alone: installed where the project is not, it has the command, and the command has all that it needs."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from opdgeom_utils import diagnose_pair
from opdgeom_utils.models import MODELS

OFFLINE = {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def opdgeom(book_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command of a fresh environment with our wheel, which sees the packages of this one but not the project."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(book_root)]
    subprocess.run([*pip, *wheel], check=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (made,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(made)], check=True)
    # A path in a .pth file is looked through, but the .pth files there are not: the editable project stays out.
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**kept, **OFFLINE, "HOME": str(home), "COLUMNS": "100"}

    def call(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "venv" / "bin" / "opdgeom"), *arguments]
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
        assert list(home.iterdir()) == [], "something was written into the user's home"
        return done

    return call


def test_help_has_examples_and_is_quick(opdgeom: Command, tmp_path: Path) -> None:
    for arguments in ((), ("report",), ("diagnose",)):
        done = opdgeom(*arguments, "--help", where=tmp_path)
        assert done.returncode == 0
        assert not arguments or f"opdgeom {arguments[0]} base anchor" in done.stdout
    assert "--install-completion" in opdgeom("--help", where=tmp_path).stdout


def test_report_needs_nothing_but_the_wheel(opdgeom: Command, tmp_path: Path) -> None:
    done = opdgeom("report", "base", "anchor", "--modules", "k_proj", "--label", "mine", where=tmp_path)
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "reports").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "<title>Where mine lies</title>" in text
    assert str(tmp_path) not in text.partition("<article")[2].partition("</article>")[0]
    table = pd.read_parquet(page.with_suffix(".parquet"))
    assert table["module"].tolist() == ["k_proj"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]


def test_diagnose_writes_the_table_of_python(opdgeom: Command, tmp_path: Path) -> None:
    done = opdgeom("diagnose", "base", "anchor", "--modules", "k_proj,v_proj", "--k", "4", "--no-nulls", "-o", "t.csv",
                   where=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "t.csv")
    expected = diagnose_pair(MODELS / "base", MODELS / "anchor", k=4, modules=["k_proj", "v_proj"], nulls=False)
    columns = ["name", "shape", "update_sparsity", "update_norm", "left_angle_max_deg"]
    pd.testing.assert_frame_equal(table[columns], expected[columns])
    assert table["step"].tolist() == [0] * 8
