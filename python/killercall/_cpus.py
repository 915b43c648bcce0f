"""How many CPUs this process may use: affinity mask and cgroup quota, not the bare core count."""

from __future__ import annotations

import math
import os

from killercall._cgroups import enclosing_groups, read


def available_cpus() -> int:
    """The CPUs that this process may keep busy, at least 1; a fractional quota is rounded up."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def default_workers() -> int:
    """The available CPUs less 2, which the host and the desktop keep, but at least 2 of 2."""
    cpus = available_cpus()
    return max(cpus - 2, min(2, cpus))


def cpu_quota() -> float | None:
    """The tightest CPU quota of the cgroups that enclose this process, in CPUs."""
    quotas = [
        _quota_v2(group) if unified else _quota_v1(group)
        for group, unified in enclosing_groups("cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: str) -> float | None:
    try:
        quota, period = read(group, "cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(group: str) -> float | None:
    try:
        quota = int(read(group, "cpu.cfs_quota_us"))
        return quota / int(read(group, "cpu.cfs_period_us")) if quota > 0 else None
    except (OSError, ValueError):
        return None
