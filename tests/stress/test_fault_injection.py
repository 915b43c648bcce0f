"""
Calls and maps of all kinds while everything is killed, stopped, starved and interrupted.

Seeded and timed: `KILLERCALL_STRESS_SEED=<n>` replays the choices of one run,
`KILLERCALL_STRESS_ROUNDS=<n,n,...>` only those of some of its rounds, and
`KILLERCALL_STRESS_SECONDS=<s>` sets the length (1 by default, more in CI).
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from rounds import Run, repeat

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("KILLERCALL_STRESS_SECONDS", "1"))
SEED = int(os.environ.get("KILLERCALL_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(32)
ROUNDS = [
    int(number) for number in os.environ.get("KILLERCALL_STRESS_ROUNDS", "").split(",") if number
]


@pytest.mark.timeout(300 + 2 * SECONDS)
@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="needs /proc")
def test_fault_injection(tmp_path: Path) -> None:
    """Each call ends as it must, none runs twice, and nothing is left."""
    run = Run(tmp_path, SEED)

    wrong = repeat(run, SECONDS, ROUNDS, lambda text: print(f"seed {SEED}: {text}"))

    assert [] == wrong, "\n\n".join(wrong)
