"""
Series and frames of polars: their columns of numbers and times travel as arrays.

Polars pickles to bytes, which are made, copied and taken apart again. An array is written once, to
a file, and copied out of it once. What is not plainly a row of numbers pickles as polars has it.
"""

from __future__ import annotations

import sys
from typing import Any

# With fewer bytes it makes no difference.
_LARGE = 64 * 1024

# As polars calls them; all are numbers of so many bits, or are kept as such.
_PLAIN = frozenset(
    {
        *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
        *("Float32", "Float64", "Date", "Datetime", "Duration", "Time"),
    }
)


def reduce_polars(obj: Any) -> tuple[Any, ...] | None:
    """What pickle makes of it; None for all that is better left to polars, or is not polars'."""
    polars = sys.modules.get("polars")
    if type(obj) is getattr(polars, "Series", None):
        return _reduce_series(obj) if _is_plain(obj) else None
    if type(obj) is getattr(polars, "DataFrame", None):
        columns = obj.get_columns()
        return (_frame, (columns,)) if any(map(_is_plain, columns)) else None
    return None


def _is_plain(series: Any) -> bool:
    return (
        series.dtype.base_type().__name__ in _PLAIN
        and series.estimated_size() >= _LARGE
        and not series.null_count()
    )


def _reduce_series(series: Any) -> tuple[Any, ...] | None:
    try:
        array = series.to_physical().to_numpy()
    except ModuleNotFoundError:
        # Polars goes without numpy, too.
        return None
    order = [name for name, is_so in series.flags.items() if is_so]
    return _series, (series.name, array, series.dtype, order)


def _series(name: str, array: Any, dtype: Any, order: list[str]) -> Any:
    import polars

    series = polars.Series(name, array).cast(dtype)
    if "SORTED_ASC" in order or "SORTED_DESC" in order:
        series = series.set_sorted(descending="SORTED_DESC" in order)
    return series


def _frame(columns: list[Any]) -> Any:
    import polars

    return polars.DataFrame(columns)
