"""A chart for each measure that has one: a bar a contestant, ours in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.limits import median
from benchmarks.report import SCALE, figure

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.conductor import Measure, Taken

OURS, FLOOR, PEER = "#c8321e", "#3c3c3c", "#9db4c8"


def file_name(measure: Measure) -> str:
    """Where the chart of a measure is, below the images."""
    return f"benchmark-{measure.key.replace(' ', '-')}.png"


def draw(measure: Measure, taken: dict[str, Taken], directory: Path) -> bool:
    """Draws the medians; whether there was anything to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    floors = {measure.contestants[0].name} - {
        name for name in taken if name.startswith("killercall")
    }
    medians = {
        name: median(mine.samples) * SCALE[measure.unit]
        for name, mine in taken.items()
        if mine.samples and median(mine.samples) > 0
    }
    if not medians:
        return False
    order = sorted(medians, key=medians.__getitem__, reverse=not measure.more_is_better)
    image, axes = plt.subplots(figsize=(9, 1.1 + 0.36 * len(order)), layout="constrained")
    colours = [
        OURS if name.startswith("killercall") else FLOOR if name in floors else PEER
        for name in order
    ]
    bars = axes.barh(order, [medians[name] for name in order], color=colours, height=0.7)
    axes.bar_label(bars, [f" {figure(medians[name])}" for name in order], fontsize=9)
    largest, smallest = max(medians.values()), min(medians.values())
    better = "more is better" if measure.more_is_better else "less is better"
    scale = ""
    if largest / smallest > 30:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlim(smallest / 3, largest * 4)
        scale = ", logarithmic"
    else:
        axes.set_xlim(0, largest * 1.15)
    axes.set_xlabel(f"{measure.unit}, median{scale}; {better}")
    axes.set_title(measure.title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    directory.mkdir(parents=True, exist_ok=True)
    # Without the version of the library in it, or each run would change all bytes.
    image.savefig(directory / file_name(measure), dpi=110, metadata={"Software": None})
    plt.close(image)
    return True
