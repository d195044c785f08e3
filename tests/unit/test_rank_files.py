"""One file for each rank, written by real processes: every placement, and files that do not fit together."""

import errno
import os
import random
import shutil

import pytest
import torch

from opdgeom_utils.checkpoints import comparison_report, open_checkpoint
from opdgeom_utils.checkpoints.mapped_tensors import FileTensor
from opdgeom_utils.checkpoints.rank_files import rank_tensors
from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Piece, chunk, strided_chunk
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMemoryError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)
from tests.damage import RunsCode, hit_archive, mutated, outcome_of, time_limit, with_damaged_pickle
from tests.write_shards import full_tensors

pytestmark = pytest.mark.xdist_group("shards")


def _read_all(folder):
    return {name: tensor.read_unchecked() for name, tensor in open_checkpoint(folder).tensors.items()}


def _rank(folder, rank):
    return folder / f"model_world_size_4_rank_{rank}.pt"


@pytest.fixture
def line(shards, tmp_path):
    return shutil.copytree(shards / "line", tmp_path / "line")


@pytest.mark.parametrize("mesh", ["line", "grid"])
def test_every_placement_gives_the_tensor_that_was_sharded(mesh, shards):
    opened, full = open_checkpoint(shards / mesh), full_tensors()
    assert sorted(opened.tensors) == sorted(full)
    for name, expected in full.items():
        assert (opened.tensors[name].shape, opened.tensors[name].dtype) == (tuple(expected.shape), expected.dtype)
        assert torch.equal(opened.tensors[name].read(), expected), name


def test_sharded_checkpoints_are_diagnosed_in_several_processes(shards):
    assert comparison_report(shards / "line", shards / "grid").complete
    table = diagnose_pair(shards / "line", shards / "grid", k=2, nulls=False, n_jobs=2)
    assert set(table["note"]) == {"identical to the reference"}


def test_the_folder_above_and_its_configuration_are_found(line, tmp_path):
    actor = tmp_path / "global_step_5" / "actor"
    shutil.copytree(line, actor)
    (actor / "huggingface").mkdir()
    (actor / "huggingface" / "config.json").write_text('{"model_type": "qwen3"}')
    for source in (actor, actor.parent):
        opened = open_checkpoint(source)
        assert (len(opened.tensors), opened.config["model_type"]) == (7, "qwen3")


def test_a_missing_rank_is_named(line):
    _rank(line, 2).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"3 of 4 ranks, without model_world_size_4_rank_2\.pt"):
        open_checkpoint(line)
    shutil.copy(_rank(line, 1), line / "model_world_size_8_rank_0.pt")
    with pytest.raises(CheckpointDamagedError, match=r"world sizes \[4, 8\]"):
        open_checkpoint(line)


def test_a_file_under_another_ranks_name_is_found(line):
    shutil.copy(_rank(line, 3), _rank(line, 2))
    with pytest.raises(CheckpointDamagedError, match=r"rank_2\.pt: (tensor|the piece of tensor) model\.layers\.0\.\w+"):
        _read_all(line)


def test_replicas_of_different_steps_are_found(tmp_path):
    for rank in range(2):
        state = {"w": torch.tensor([1.0, 2.0 + rank])}
        torch.save(state, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(
        CheckpointDamagedError, match=r"rank_1\.pt: the piece of tensor w is not what another rank holds"
    ):
        open_checkpoint(tmp_path).tensors["w"].read()


def test_partial_sums_are_refused(shards):
    with pytest.raises(MetricInputError, match=r"rank_0\.pt: tensor model\.scale is placed as Partial"):
        open_checkpoint(shards / "partial")


def test_a_truncated_rank_is_named(line):
    _rank(line, 1).write_bytes(_rank(line, 1).read_bytes()[:-200])
    with pytest.raises(CheckpointDamagedError, match=r"rank_1\.pt: not a readable file of torch\.save"):
        open_checkpoint(line)


def test_damage_after_opening_is_found_on_reading(line):
    opened = open_checkpoint(line)
    _rank(line, 1).write_bytes(b"gone")
    with pytest.raises(CheckpointDamagedError, match=r"rank_1\.pt"):
        opened.tensors["model.layers.0.q_proj.weight"].read()
    _rank(line, 1).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"rank_1\.pt"):
        opened.tensors["model.layers.0.q_proj.weight"].read()


@pytest.mark.parametrize("damage", [mutated, hit_archive, with_damaged_pickle])
def test_a_damaged_rank_is_refused_or_spoils_its_own_part_only(damage, shards, tmp_path):
    dice, full, outcomes = random.Random(0), full_tensors(), set()
    whole = (shards / "line" / "model_world_size_4_rank_1.pt").read_bytes()
    line = shutil.copytree(shards / "line", tmp_path / "line")
    for number in range(40):
        _rank(line, 1).write_bytes(damage(whole, dice))
        found = outcome_of(lambda: _read_all(line), str(line))
        if found is None:
            outcomes.add("refused")
            continue
        outcomes.add("read")
        q = "model.layers.0.q_proj.weight"
        if q in found and damage is not with_damaged_pickle:
            kept = [row for row in range(16) if not 4 <= row < 8]
            assert torch.equal(found[q][kept], full[q][kept]), number
    assert "refused" in outcomes


def test_code_in_a_rank_file_is_refused_and_not_run(line, capsys):
    torch.save({"w": torch.ones(2), "x": RunsCode()}, _rank(line, 0))
    with pytest.raises(CheckpointUnsafeError, match=r"rank_0\.pt: its pickle asks for (builtins|__builtin__)\.print"):
        open_checkpoint(line)
    assert capsys.readouterr().out == ""


def test_only_tensors_by_name_are_a_checkpoint(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "model_world_size_1_rank_0.pt")
    with pytest.raises(CheckpointDamagedError, match="holds a list, expected tensors by name"):
        open_checkpoint(tmp_path)


def test_whole_numbers_are_buffers(tmp_path):
    torch.save(
        {"w": torch.ones(2), "steps": torch.ones(2, dtype=torch.int64)}, tmp_path / "model_world_size_1_rank_0.pt"
    )
    tensors, buffers = rank_tensors(tmp_path)
    assert (list(tensors), buffers) == (["w"], ["steps"])


@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 13])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_chunks_are_those_of_torch(size, parts):
    pieces = list(torch.arange(size).chunk(parts)) if size else []
    pieces += [torch.arange(0)] * (parts - len(pieces))
    for index, expected in enumerate(pieces):
        found = chunk(((0, size),) if size else (), parts, index)
        assert [entry for interval in found for entry in range(*interval)] == expected.tolist()


def test_strided_chunks_are_those_of_the_documented_example():
    found = [strided_chunk(((0, 9),), 2, 4, index) for index in range(4)]
    assert [[entry for interval in part for entry in range(*interval)] for part in found] == [
        *([0, 1, 5], [2, 3, 6], [4, 7], [8])
    ]


def test_a_hole_is_found_on_reading():
    pieces = (
        Piece((((0, 2),),), torch.ones(2).__getitem__, "a.pt"),
        Piece((((1, 3),),), torch.ones(2).__getitem__, "b.pt"),
    )
    with pytest.raises(CheckpointDamagedError, match=r"a\.pt: 1 of 4 entries of tensor w are in no piece"):
        Assembled("w", (4,), torch.float32, pieces)()


def test_a_piece_strided_one_way_and_empty_the_other_holds_nothing():
    pieces = (
        Piece((((0, 1), (2, 3)), ()), torch.ones(2, 0).__getitem__, "a.pt"),
        Piece((((0, 4),), ((0, 3),)), torch.ones(4, 3).__getitem__, "b.pt"),
    )
    assert torch.equal(Assembled("w", (4, 3), torch.float32, pieces)(), torch.ones(4, 3))


def _cut_in_pieces(values):
    """Rows strided over two ranks, columns split unevenly, and a replica of a corner."""
    regions = [
        (rows, ((left, right),)) for rows in (((0, 2), (4, 6)), ((2, 4), (6, 7))) for left, right in ((0, 3), (3, 5))
    ]
    regions.append((((1, 3),), ((1, 4),)))
    for region in regions:
        rows, columns = (torch.cat([torch.arange(*part) for part in parts]) for parts in region)
        yield Piece((*region, ((0, 2),)), values[rows][:, columns].__getitem__, "a.pt")


CUTS = [(), (2,), (slice(1, 5),), (slice(0, None, 2), 3), (slice(None), slice(1, None, 3), 1), (6, slice(3, 3)), (-1,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("cuts", CUTS)
def test_a_part_is_that_of_the_whole(cuts, dtype):
    values = (torch.arange(70.0) % 13).reshape(7, 5, 2).to(dtype)
    assembled = Assembled("w", (7, 5, 2), dtype, tuple(_cut_in_pieces(values.view(dtype))))
    assert torch.equal(assembled(cuts).float(), values[cuts].float())
    assert torch.equal(assembled()[cuts].float(), values[cuts].float())


def test_a_part_is_put_together_from_the_pieces_that_hold_it():
    loaded = []
    pieces = [
        Piece((((n, n + 1),), ((0, 3),)), lambda cuts, n=n: loaded.append(n) or torch.ones(1, 3)[cuts], "a.pt")
        for n in range(4)
    ]
    Assembled("w", (4, 3), torch.float32, tuple(pieces))((slice(1, 3),))
    assert loaded == [1, 2]


def test_quantised_weights_are_refused_and_what_is_no_tensor_is_listed(tmp_path):
    file = tmp_path / "model_world_size_1_rank_0.pt"
    torch.save({"w": torch.ones(2), "n": torch.tensor(3), "epoch": 4}, file)
    assert open_checkpoint(tmp_path).left_out == ("n", "epoch")
    torch.save({"w": torch.ones(2), "q": torch.ones(2, dtype=torch.int8)}, file)
    with pytest.raises(MetricInputError, match=r"rank_0\.pt: tensor q is stored as int8, expected one of F64"):
        open_checkpoint(tmp_path)


def test_a_link_to_another_folder_is_not_followed(line, tmp_path):
    outer = tmp_path / "global_step_5"
    (outer / "kept").mkdir(parents=True)
    (outer / "actor").symlink_to(line)
    with pytest.raises(CheckpointUnsafeError, match=r"actor: is a link to .*line, outside its folder"):
        open_checkpoint(outer)
    (outer / "actor").unlink()
    shutil.copytree(line, outer / "kept", dirs_exist_ok=True)
    (outer / "actor").symlink_to(outer / "kept")
    assert len(open_checkpoint(outer).tensors) == 7


def test_a_relative_path_stays_that_folder(line, monkeypatch):
    monkeypatch.chdir(line.parent)
    opened = open_checkpoint("line")
    monkeypatch.chdir("/")
    assert opened.label == "line"
    assert torch.equal(opened.tensors["model.scale"].read(), full_tensors()["model.scale"])


def test_a_pipe_in_the_place_of_a_rank_is_not_waited_for(line):
    opened = open_checkpoint(line)
    _rank(line, 1).unlink()
    os.mkfifo(_rank(line, 1))
    for read in (lambda: open_checkpoint(line), opened.tensors["model.scale"].read):
        with time_limit(20), pytest.raises(CheckpointUnsafeError, match=r"rank_1\.pt: is no regular file, but a pipe"):
            read()


def _sparse(path, size):
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def test_a_file_larger_than_the_memory_is_read_where_it_is_looked_at(tmp_path):
    """400 GB, of which the disk holds one page: the end of a large tensor, then a small tensor of its own."""
    rows, columns = 100_000, 1_000_000
    file = _sparse(tmp_path / "x.pt", 4 * rows * columns)
    with file.open("r+b") as stream:
        stream.seek(-16, 2)
        stream.write(torch.arange(1.0, 5.0).numpy().tobytes())
    large = FileTensor(str(file), 0, torch.float32, (rows, columns), (columns, 1), 0)
    piece = Piece((((0, rows),), ((0, columns),)), large, "x")
    assembled = Assembled("w", (rows, columns), torch.float32, (piece,))
    part = assembled((rows - 1, slice(columns - 4, None)))
    small = FileTensor(str(file), 4 * rows * columns - 8, torch.float32, (2,), (1,), 0)()
    odd = FileTensor(str(file), 4 * rows * columns - 7, torch.int32, (1,), (1,), 0)()
    assert (part.tolist(), small.tolist()) == ([1.0, 2.0, 3.0, 4.0], [3.0, 4.0])
    assert odd.view(torch.uint8).tolist() == list(file_tail(file, 7)[:4])


def file_tail(file, count):
    with file.open("rb") as stream:
        stream.seek(-count, 2)
        return stream.read()


def test_memory_that_is_refused_is_not_blamed_on_the_file(line, monkeypatch):
    opened = open_checkpoint(line)

    def refused(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refused)
    with pytest.raises(
        CheckpointMemoryError, match=r"rank_0\.pt: the system refused to map \d+ bytes .*Raise the limit"
    ):
        opened.tensors["model.scale"].read()


def test_writing_to_what_was_read_does_not_reach_the_file(line):
    before = _rank(line, 0).read_bytes()
    for tensor in open_checkpoint(line).tensors.values():
        tensor.read().zero_()
    assert _rank(line, 0).read_bytes() == before
