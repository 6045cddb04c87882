r"""A query of a database as one file of a log: through ADBC, which hands out Arrow, into Parquet.

    python -m components ingest --source database --path postgresql://reader@warehouse/shop --mode append \
        --query "SELECT user_id, sku AS item_id, ts AS timestamp FROM events WHERE ts::date = '{night}'"

`{night}` is the day of `--night`, else yesterday (UTC), and names the file: 2024-03-05.parquet. So the same night asked
for again replaces its own rows, and a night that was missed is asked for by its day. It needs `--mode append`: else one
night would replace the whole log. A query without it is one file, query.parquet, replaced whenever its answer differs.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import InputError, SettingsError, SourceUnreachableError
from components.settings import IngestSettings
from components.sources.fetch import LocalFile

_NIGHT = "{night}"
_SCHEMES = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql"}
_EXPECTED = "sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database"


def query_database(settings: IngestSettings, scratch: Path) -> LocalFile:
    """Write the answer to `settings.query` into `scratch`.

    Raises:
        SettingsError: the URL or the query is missing, is of no database known, or holds a password; one night of it
            is to replace the log.
        InputError: the database refuses the query.
        SourceUnreachableError: the database cannot be reached.
    """
    url, query = _check(settings)
    night = settings.night or dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    name = f"{night.isoformat()}.parquet" if _NIGHT in query else "query.parquet"
    target = scratch / name
    pq.write_table(_fetch(url, query.replace(_NIGHT, night.isoformat())), target)
    return LocalFile(target, f"{url} ({name})", name, downloaded=True, relative=name)


def _check(settings: IngestSettings) -> tuple[str, str]:
    url, query = settings.path or "", settings.query
    if urlsplit(url).scheme not in _SCHEMES:
        raise SettingsError("is no database", where="--path", observed=settings.path, expected=_EXPECTED)
    if urlsplit(url).password:
        raise SettingsError("holds a password", where="--path", todo="Put it into PGPASSWORD or ~/.pgpass")
    if query is None:
        raise SettingsError("is missing", where="--query", expected="SELECT user_id, item_id, timestamp FROM ...")
    if _NIGHT in query and settings.mode != "append":
        raise SettingsError(
            f"asks for one night, {_NIGHT}, which would replace the whole log",
            where="--query",
            todo="Pass --mode append",
        )
    return url, query


def _fetch(url: str, query: str) -> pa.Table:
    from adbc_driver_manager import dbapi

    try:
        with _connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetch_arrow_table()
    except (dbapi.Error, pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())[:200]
        if isinstance(error, dbapi.OperationalError) and _driver_of(url) == "postgresql":
            todo = "Check host, network and rights; or try again later"
            raise SourceUnreachableError("cannot be reached", where=url, observed=words, todo=todo) from None
        todo = "Try the query in the database's own shell"
        raise InputError("refuses the query", where=url, observed=words, todo=todo) from None


def _connect(url: str) -> Any:  # noqa: ANN401 - ADBC has no stubs
    if _driver_of(url) == "postgresql":
        from adbc_driver_postgresql import dbapi as postgresql

        return postgresql.connect(url)
    from adbc_driver_sqlite import dbapi as sqlite

    file = url.split(":///", 1)[1]
    if not Path(file).is_file():
        raise InputError("no such file", where=url, todo="Check the path; sqlite://// begins an absolute one")
    return sqlite.connect(f"file:{quote(file)}?mode=ro")


def _driver_of(url: str) -> str:
    return _SCHEMES[urlsplit(url).scheme]
