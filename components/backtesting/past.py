"""The log as it was at a moment: what a night may know. Same files, same order, nothing from that second on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import InputError
from components.interactions import read_interactions, write_partitions

_QUARANTINE = pa.table({"partition": pa.array([], pa.string()), "row": pa.array([], pa.int64())})


def choose_users(data: Path, quarantine: Path, every_user: int, target: Path) -> None:
    """Write the log of every n-th user, by id, without the quarantined rows, as `target`/data and quarantine."""
    table = read_interactions(data, quarantine=quarantine)
    users = np.unique(table["user_id"].to_numpy())[::every_user]
    _write(table.filter(pc.is_in(table["user_id"], pa.array(users))), data, target)


def cut_log(whole: Path, time: int, target: Path) -> None:
    """Write what `whole`/data holds before `time` (seconds) as `target`/data and quarantine.

    Raises:
        InputError: nothing happened before.
    """
    table = read_interactions(whole / "data")
    past = table.filter(pc.less(table["timestamp"], time))
    if past.num_rows == 0:
        first = np.datetime64(int(table["timestamp"][0].as_py()), "s")
        raise InputError("the log begins later", where="--from", expected=f"a day after {first}")
    _write(past, whole / "data", target)


def _write(table: pa.Table, data: Path, target: Path) -> None:
    if target.exists():  # of a night that was stopped
        shutil.rmtree(target)
    write_partitions(target / "data", table)
    for file in data.glob("*.*"):  # items, keys, manifest: as today's log has them
        if file.is_file():
            shutil.copyfile(file, target / "data" / file.name)
    pq.write_table(_QUARANTINE, target / "quarantine.parquet")
