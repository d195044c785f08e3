"""Spreading the work: every row once, whatever dies on the way, and nothing measured twice."""

import os
import signal
import threading
import time
from collections import Counter

import joblib
import pandas as pd
import pytest
import threadpoolctl
import torch
from safetensors.torch import save_file

from opdgeom_utils import diagnose_pair, diagnose_trajectory, storage
from opdgeom_utils.diagnose import fan_out
from opdgeom_utils.errors import MetricInputError, RunLockedError, StorageError

OPTIONS = {"k": 4, "rank": 3}


def save_model(path, seed, *, n=6, size=12, drift=0.0):
    """A file of ``n`` small matrices and one norm; ``drift`` is how far they are from those of seed 0."""
    base, noise = (torch.Generator().manual_seed(s) for s in (0, seed))
    shapes = {f"model.layers.{i}.self_attn.q_proj.weight": (size, size + i) for i in range(n)}
    shapes["model.norm.weight"] = (size,)
    draws = {name: torch.randn(shape, generator=base) for name, shape in shapes.items()}
    save_file({name: w + drift * torch.randn(w.shape, generator=noise) for name, w in draws.items()}, path)
    return path


@pytest.fixture
def pair(tmp_path):
    return (
        save_model(tmp_path / "reference.safetensors", 0),
        save_model(tmp_path / "step_000001.safetensors", 1, drift=0.01),
    )


@pytest.fixture
def measured(monkeypatch):
    """Names of the tensors that are really measured, in order."""
    names = []
    plain = fan_out.measure_checkpoints
    monkeypatch.setattr(
        fan_out, "measure_checkpoints", lambda name, *a, **k: (names.append(name), plain(name, *a, **k))[1]
    )
    return names


def test_a_folder_gets_a_part_for_each_tensor_and_the_whole_table(pair, tmp_path):
    table = diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    pd.testing.assert_frame_equal(table, diagnose_pair(*pair, **OPTIONS))
    whole = pd.read_parquet(tmp_path / "out" / "diagnosis.parquet")
    pd.testing.assert_frame_equal(whole.drop(columns="step"), table)
    parts = pd.read_parquet(tmp_path / "out" / "parts")
    assert sorted(parts["name"]) == sorted(table["name"])


def test_a_killed_job_resumes_and_repeats_nothing(pair, tmp_path, monkeypatch, measured):
    plain, seen = fan_out.measure_checkpoints, []

    def killed_at_the_fourth(name, *args, **kwargs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(name)
        return plain(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fan_out, "measure_checkpoints", killed_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    done = measured.copy()
    assert len(done) == len(list((tmp_path / "out" / "parts").glob("*.parquet"))) == 3
    table = diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    assert Counter(measured) == Counter(table["name"])
    pd.testing.assert_frame_equal(table, diagnose_pair(*pair, **OPTIONS))


def test_other_settings_or_other_weights_are_measured_again(pair, tmp_path, measured):
    diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    assert len(measured) == 7
    diagnose_pair(*pair, k=5, rank=3, out=tmp_path / "out")
    assert len(measured) == 14
    save_model(pair[1], 2, drift=0.02)
    table = diagnose_pair(*pair, k=5, rank=3, out=tmp_path / "out")
    assert len(measured) == 21
    assert len(list((tmp_path / "out" / "parts").glob("*.parquet"))) == len(table) == 7


def test_other_code_never_mixes_its_rows_with_older_ones(pair, tmp_path, measured, monkeypatch):
    diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    monkeypatch.setattr(fan_out, "_engine_digest", lambda: "an upgraded engine")
    diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    assert len(measured) == 14


def test_a_damaged_part_is_measured_again(pair, tmp_path, measured):
    table = diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")
    parts = sorted((tmp_path / "out" / "parts").glob("*.parquet"))
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    twin = parts[1].with_name(parts[1].name.split("-")[0] + "-ffff.parquet")
    twin.write_bytes(parts[1].read_bytes())  # as a kill leaves it, between writing a part and removing the old one
    pd.testing.assert_frame_equal(diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out"), table)
    assert len(measured) - 7 in (1, 2)  # the damaged one, and perhaps the one whose twin came first
    assert len(list((tmp_path / "out" / "parts").glob("*.parquet"))) == 7


def test_two_calls_into_one_folder_wait_for_each_other(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(fan_out, "WAIT_SECONDS", 0.1)
    with storage.locked(tmp_path / "out", wait_seconds=1.0), pytest.raises(RunLockedError):
        diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")


def test_every_library_of_a_worker_has_one_thread(pair, monkeypatch):
    seen = []
    plain = fan_out.measure_checkpoints

    def spy(*args, **kwargs):
        seen.extend(pool["num_threads"] for pool in threadpoolctl.threadpool_info())
        return plain(*args, **kwargs)

    monkeypatch.setattr(fan_out, "measure_checkpoints", spy)
    with joblib.parallel_config(backend="threading"):
        diagnose_pair(*pair, **OPTIONS, n_jobs=2)
    assert set(seen) == {1}


def test_a_trajectory_resumes_with_its_steps(pair, tmp_path, measured):
    later = save_model(tmp_path / "step_000002.safetensors", 2, drift=0.02)
    first = diagnose_trajectory(pair[0], [pair[1], later], **OPTIONS, out=tmp_path / "out")
    again = diagnose_trajectory(pair[0], [pair[1], later], **OPTIONS, out=tmp_path / "out")
    pd.testing.assert_frame_equal(first, again)
    assert len(measured) == 7
    assert first["step"].tolist() == [1] * 7 + [2] * 7


def test_a_named_backend_is_used_as_it_is(pair):
    with joblib.parallel_config(backend="threading", n_jobs=2):
        table = diagnose_pair(*pair, **OPTIONS)
    pd.testing.assert_frame_equal(table, diagnose_pair(*pair, **OPTIONS))


def test_threads_are_given_back(pair):
    before = torch.get_num_threads()
    with joblib.parallel_config(backend="threading", n_jobs=1):
        diagnose_pair(*pair, **OPTIONS)
    assert torch.get_num_threads() == before


def test_a_file_in_the_place_of_the_folder_is_refused_in_words(pair):
    with pytest.raises(MetricInputError, match="a file, expected a folder"):
        diagnose_pair(*pair, **OPTIONS, out=pair[0])


def test_a_full_disk_is_said_in_words(pair, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opdgeom_utils.storage.tempfile.mkstemp", full)
    with pytest.raises(StorageError, match="No space left on device"):
        diagnose_pair(*pair, **OPTIONS, out=tmp_path / "out")


def test_a_cluster_that_loses_a_worker_returns_every_row_once(tmp_path):
    import distributed

    reference = save_model(tmp_path / "reference.safetensors", 0, n=24, size=160)
    tuned = save_model(tmp_path / "tuned.safetensors", 1, n=24, size=160, drift=0.01)
    parts, killed = tmp_path / "out" / "parts", []

    def kill_one_half_way(pid):
        while len(list(parts.glob("*.parquet"))) < 8:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        killed.append(len(list(parts.glob("*.parquet"))))

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pid = next(iter(client.run(os.getpid).values()))
        killer = threading.Thread(target=kill_one_half_way, args=(pid,), daemon=True)
        killer.start()
        with joblib.parallel_config(backend="dask"):
            table = diagnose_pair(reference, tuned, **OPTIONS, out=tmp_path / "out")
        killer.join(timeout=60)
    assert killed
    assert killed[0] < 25
    written = pd.read_parquet(parts)
    assert Counter(written["name"]) == Counter(table["name"])
    assert set(Counter(table["name"]).values()) == {1}
    assert len(table) == 25
    pd.testing.assert_frame_equal(table, diagnose_pair(reference, tuned, **OPTIONS), rtol=1e-9, atol=1e-9)
