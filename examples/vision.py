"""
A vision pipeline with two models beside each other, each in a process of its own.

Every frame is a piece of a real photograph with a few stickers on it, each with a real digit
that somebody wrote by hand. A detector in this process finds the stickers. Two actors share
what comes next: one estimates how large each digit is written, the other one reads it. The
aggregator needs both answers: in one process a frame takes the sum of the two, and side by
side the longer one, if there is a core for each.

Both models are built once, in their worker, by their constructor, and keep their state there.
Each call has a deadline. At the end comes a frame that takes one of the models too long: that
model is killed and built again, and the other one does not notice.

    pip install killercall pillow scikit-learn
    python examples/vision.py
"""

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# One thread a model: otherwise what is measured is how BLAS divides the machine.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy import ndimage
from sklearn import datasets, svm

import killercall
from killercall import killer_actor

FRAMES = 20
ROUNDS = 3
HEIGHT, WIDTH = 240, 360
STICKERS = 6
SIZES = range(24, 57, 4)
"""How many pixels high a digit may be written."""

BORDER = (255, 0, 255)
"""The colour around a sticker, which no photograph here has."""

TRAINING = 1200
"""So many digits the models may learn from; the frames show others."""

DEADLINE = 20.0
"""Seconds for a frame in each model, far more than one takes."""

Picture = np.ndarray
"""Grey levels of one sticker, ink 1 and paper 0; or a frame in colour."""


# The types that checkers find in there say less than the documentation.
load_digits: Callable[[], Any] = functools.cache(datasets.load_digits)
machines: Any = svm


class Sticker(NamedTuple):
    """What is on a frame, for the comparison at the end."""

    digit: int
    size: int


class Finding(NamedTuple):
    """What the aggregator makes of one sticker; None where a model had no answer in time."""

    digit: int | None
    size: float | None


def written(digit: Picture, size: int, margin: int) -> Picture:
    """A digit of 8 x 8 pixels, written `size` pixels high, with paper around it."""
    large = np.asarray(ndimage.zoom(digit / 16.0, size / digit.shape[0], order=1))
    return np.pad(np.clip(large, 0, 1), margin)


def look(picture: Picture) -> Picture:
    """A sticker as a model sees it: 8 x 8 numbers."""
    smooth = ndimage.gaussian_filter(picture, len(picture) / 24)
    small: Picture = np.asarray(ndimage.zoom(smooth, 8 / len(picture), order=1))
    return small.ravel() * 16


def frames(count: int) -> list[tuple[Picture, list[Sticker]]]:
    """Frames and what is on them, from left to right: the same ones every time."""
    random = np.random.default_rng(7)
    photographs = datasets.load_sample_images().images
    made = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top = random.integers(photograph.shape[0] - HEIGHT)
        left = random.integers(photograph.shape[1] - WIDTH)
        frame = photograph[top : top + HEIGHT, left : left + WIDTH].copy()
        made.append((frame, [stick(frame, place, random) for place in range(STICKERS)]))
    return made


def stick(frame: Picture, place: int, random: np.random.Generator) -> Sticker:
    """Puts a sticker on a frame."""
    digits = load_digits()
    index = random.integers(TRAINING, len(digits.target))
    size = int(random.choice(SIZES))
    picture = written(digits.images[index], size, int(random.integers(size // 10, size // 4)))
    side = len(picture) + 4
    # Large ones reach into the next place, so neighbours are not at the same height.
    low, high = (0, HEIGHT // 2) if place % 2 else (HEIGHT // 2, HEIGHT)
    y = random.integers(low, high - side)
    x = min(place * WIDTH // STICKERS, WIDTH - side)
    frame[y : y + side, x : x + side] = BORDER
    paper = (255 * (1 - picture)).astype(np.uint8)
    frame[y + 2 : y + side - 2, x + 2 : x + side - 2] = paper[:, :, None]
    return Sticker(int(digits.target[index]), size)


def detect(frame: Picture) -> list[Picture]:
    """The stickers of a frame, from left to right."""
    border = (frame == BORDER).all(axis=2)
    labels = np.zeros(border.shape, np.int32)
    ndimage.label(border, output=labels)
    boxes = sorted(ndimage.find_objects(labels), key=lambda box: box[1].start)
    inside = (frame[rows.start + 2 : rows.stop - 2, columns.start + 2 : columns.stop - 2, 0]
              for rows, columns in boxes)  # fmt: skip
    return [1 - picture / 255.0 for picture in inside]


def examples(seed: int) -> tuple[list[Picture], list[float], list[int]]:
    """Looks of stickers with digits that are on no frame, how much of each is digit, and which."""
    random = np.random.default_rng(seed)
    digits = load_digits()
    margins = random.integers(4, 11, TRAINING)
    pictures = [
        written(digit, 40, margin)
        for digit, margin in zip(digits.images[:TRAINING], margins, strict=True)
    ]
    looks = [look(picture) for picture in pictures]
    return looks, [40 / len(picture) for picture in pictures], list(digits.target[:TRAINING])


def turned(picture: Picture, angles: Sequence[int]) -> list[Picture]:
    """Looks of a sticker that is turned a little, in degrees."""
    return [look(ndimage.rotate(picture, angle, reshape=False, order=1)) for angle in angles]


class SizeEstimator:
    """Tells how large a digit is written, whatever paper is around it."""

    def __init__(self) -> None:
        """Learns what part of a sticker a digit takes up."""
        looks, parts, _ = examples(seed=3)
        self._model = machines.SVR(gamma=0.001, C=10, epsilon=0.005).fit(looks, parts)

    def sizes(self, pictures: Sequence[Picture]) -> list[float]:
        """In pixels; each is looked at in several turns, and the answer is the median."""
        return [self._size(picture) for picture in pictures]

    def _size(self, picture: Picture) -> float:
        parts = self._model.predict(turned(picture, range(-5, 6)))
        return round(float(np.median(parts)) * len(picture), 1)


class Classifier:
    """Reads digits."""

    def __init__(self) -> None:
        """Learns to."""
        looks, _, digits = examples(seed=4)
        self._model = machines.SVC(gamma=0.001, C=10).fit(looks, digits)

    def digits(self, pictures: Sequence[Picture]) -> list[int]:
        """What they say; each is looked at in several turns, and the majority wins."""
        return [self._digit(picture) for picture in pictures]

    def _digit(self, picture: Picture) -> int:
        votes = self._model.predict(turned(picture, range(-5, 6)))
        return int(np.bincount(votes).argmax())


def aggregate(sizes: list[float] | None, digits: list[int] | None, count: int) -> list[Finding]:
    """What both models say of each sticker."""
    nothing = [None] * count
    return list(map(Finding, digits or nothing, sizes or nothing))


Film = list[tuple[Picture, list[Sticker]]]
Found = list[list[Finding]]


def one_after_the_other(film: Film, estimator: SizeEstimator, classifier: Classifier) -> Found:
    """Every frame goes through both models. With actors or with plain objects: the same code."""
    found = []
    for frame, _ in film:
        pictures = detect(frame)
        sizes = estimator.sizes(pictures)
        digits = classifier.digits(pictures)
        found.append(aggregate(sizes, digits, len(pictures)))
    return found


def side_by_side(film: Film, estimator: Any, classifier: Any) -> Found:
    """Both models have a frame at a time, and the detector is at the next one meanwhile."""
    submitted: list[tuple[Any, Any, int]] = []
    found = []
    for frame, _ in film:
        pictures = detect(frame)
        if submitted:
            found.append(joined(*submitted.pop()))
        calls = estimator.sizes.submit(pictures), classifier.digits.submit(pictures)
        submitted.append((*calls, len(pictures)))
    return [*found, *itertools.starmap(joined, submitted)]


def joined(sizes: Any, digits: Any, count: int) -> list[Finding]:
    """Waits for both models."""
    return aggregate(sizes.result(), digits.result(), count)


def measure(film: Film, estimator: Any, classifier: Any) -> Found:
    """Frames per second in three ways; returns what was found, which must be the same in each."""
    plain = SizeEstimator(), Classifier()
    ways: dict[str, Callable[[], Found]] = {
        "this process alone": lambda: one_after_the_other(film, *plain),
        "actors, one after the other": lambda: one_after_the_other(film, estimator, classifier),
        "actors, side by side": lambda: side_by_side(film, estimator, classifier),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Found] = {}
    # In turn, so that whatever else this machine does falls on all of them.
    for _ in range(ROUNDS):
        for way, run in ways.items():
            start = time.perf_counter()
            found[way] = run()
            seconds[way].append(time.perf_counter() - start)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    print(f"{len(film)} frames, {STICKERS} stickers each, {cores} cores, load {load:.1f}")
    print(f"median of {ROUNDS} rounds (and the slowest and the quickest):\n")
    base = statistics.median(seconds["this process alone"])
    for way, times in seconds.items():
        middle = statistics.median(times)
        rates = f"{len(film) / max(times):.1f} to {len(film) / min(times):.1f}"
        print(f"  {way:<28}{len(film) / middle:6.1f} frames/s  x {base / middle:.2f}  ({rates})")
    first, *others = found.values()
    print(f"\nthe same findings each way: {'yes' if others == [first] * len(others) else 'NO'}")
    return first


def compare(found: Found, film: Film) -> None:
    """What was found, and what is there."""
    pairs = [
        pair
        for findings, (_, there) in zip(found, film, strict=True)
        for pair in zip(findings, there, strict=True)
    ]
    right = sum(finding.digit == sticker.digit for finding, sticker in pairs)
    errors = [abs((finding.size or 0) - sticker.size) for finding, sticker in pairs]
    print(
        f"digits read: {right} of {len(pairs)}; sizes off by {statistics.median(errors):.1f} px\n"
    )


def overload(film: Film, estimator: Any, classifier: Any) -> None:
    """A frame that takes one model too long, and the one after it."""
    pictures = detect(film[0][0])
    large = [np.kron(picture, np.ones((12, 12))) for picture in pictures]
    start = time.perf_counter()
    limited = estimator.sizes.options(timeout=0.5, on_timeout="default", default=None)
    late, digits = limited.submit(large), classifier.digits.submit(pictures)
    finding = joined(late, digits, len(pictures))[0]
    print(f"one model gets a frame 12 times as large and 0.5 s: {finding}", end="")
    print(f" after {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    ((finding, *_),) = side_by_side(film[:1], estimator, classifier)
    print(f"the next frame, with that model built again: {finding}", end="")
    print(f" after {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Measures three ways, compares what they found, and shows what a deadline does."""
    film = frames(FRAMES)
    # Imported once, in the process that the workers are forked from.
    killercall.preload("scipy.ndimage", "sklearn.datasets", "sklearn.svm")
    with (
        killer_actor(SizeEstimator, timeout=DEADLINE)() as estimator,
        killer_actor(Classifier, timeout=DEADLINE)() as classifier,
    ):
        compare(measure(film, estimator, classifier), film)
        overload(film, estimator, classifier)


main()
