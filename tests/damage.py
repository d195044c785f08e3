"""Damage done to files: at random, where an archive says what is where, and inside its pickle with a right checksum."""

import io
import random
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from opdgeom_utils.errors import OpdGeomError


class RunsCode:
    """What a hostile file would hold: an object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Damage a file in one of the ways in which files are damaged."""
    data = bytearray(content)
    kind = dice.choice(("flip", "flip", "flip", "byte", "cut", "grow", "swap", "digit"))
    if kind == "cut":
        return bytes(data[: dice.randrange(len(data))])
    if kind == "grow":
        return bytes(data) + bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
    places = [i for i, byte in enumerate(data) if kind != "digit" or 48 <= byte <= 57] or [0]
    for place in dice.sample(places, min(len(places), dice.randrange(1, 4))):
        if kind == "digit":
            data[place] = 48 + dice.randrange(10)
        elif kind == "swap":
            other = dice.randrange(len(data))
            data[place], data[other] = data[other], data[place]
        else:
            data[place] = data[place] ^ (1 << dice.randrange(8)) if kind == "flip" else dice.randrange(256)
    return bytes(data)


def hit_archive(content: bytes, dice: random.Random) -> bytes:
    """Damage the part of an archive that says what is where: its pickle, or a header."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = dice.choice(archive.infolist())
    data = bytearray(content)
    data[entry.header_offset + dice.randrange(120)] ^= 1 << dice.randrange(8)
    return bytes(data)


def archived(records: Mapping[str, bytes]) -> bytes:
    """Write an archive as ``torch.save`` does: storages begin at multiples of 64, checksums are right."""
    written = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(written)
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return written.getvalue()


def with_damaged_pickle(content: bytes, dice: random.Random) -> bytes:
    """Write an archive again with a damaged pickle and a checksum that fits it: what only a liar would do."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    own = ("version", ".data/serialization_id")  # the writer adds these
    records = {name: mutated(data, dice) if name == "data.pkl" else data for name, data in found.items()}
    return archived({name: data for name, data in records.items() if name not in own})


def outcome_of(read: Callable[[], Any], *names: str) -> Any:
    """Return what was read, None if it was refused with an error of ours that names one of the files."""
    try:
        return read()
    except OpdGeomError as error:
        message = str(error)
    assert any(name in message for name in names), f"the message names no file: {message}"
    return None


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Stop what waits for ever, such as the opening of a named pipe."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
