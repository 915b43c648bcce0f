"""`show_versions`: what a bug report needs. Nothing is started for it, and no package imported."""

from __future__ import annotations

import errno
import os
import resource
import sys

from killercall import _core
from killercall._cgroups import enclosing_groups, memory, read
from killercall._cpus import available_cpus, cpu_quota, default_workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    Section = list[tuple[str, str]]

# What we use, or have ways of our own to send.
_PACKAGES = ("cloudpickle", "dill", "tqdm", "numpy", "pandas", "polars", "pyarrow", "ipykernel")
_LIMITS = {
    "RLIMIT_NPROC": "ulimit -u, tasks of this user",
    "RLIMIT_NOFILE": "ulimit -n, open files",
    "RLIMIT_DATA": "ulimit -d, bytes",
    "RLIMIT_AS": "ulimit -v, bytes",
}

# Of the kernel's interface, where Python has no name for it.
_CLOSE_RANGE = 436
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272}
_KCMP_VM = 1
_MADV_COLLAPSE = 25
_PR_GET_PDEATHSIG, _PR_GET_CHILD_SUBREAPER = 2, 37
_HUGE_PAGE = 2 << 20


def show_versions() -> None:
    """
    Prints what a bug report needs: versions, limits, what the platform offers, and the workers.

    The same as `python -m killercall`. Starts no process, and imports none of the packages. What
    the platform does not offer killercall does without, or in another way.

    Example:
        >>> import killercall
        >>> killercall.show_versions()
        versions
          killercall ...
          Python ...
        ...
        limits
        ...
        platform
        ...
        workers
        ...
    """
    print("\n".join(_report()))


def _report() -> Iterator[str]:
    sections = {
        "versions": _versions(),
        "limits": _limits(),
        "platform": _platform(),
        "workers": _workers(),
    }
    width = max(len(name) for section in sections.values() for name, _ in section)
    for title, section in sections.items():
        yield title
        for name, value in section:
            yield f"  {name:<{width}}  {value}"


def _versions() -> Section:
    import platform
    from importlib import metadata

    system = os.uname()
    found = [
        ("killercall", _core.__version__),
        ("Python", f"{sys.version.split()[0]} {sys.implementation.name}{_without_gil()}"),
        ("system", _name_of_system()),
        ("kernel", f"{system.sysname} {system.release} {system.machine}"),
        ("C library", " ".join(platform.libc_ver()).strip() or "unknown"),
    ]
    for package in _PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        found.append((package, version))
    return found


def _without_gil() -> str:
    has_gil = getattr(sys, "_is_gil_enabled", None)
    return "" if has_gil is None or has_gil() else ", free-threaded"


def _name_of_system() -> str:
    import platform

    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return platform.platform()


def _limits() -> Section:
    found = []
    for name, meaning in _LIMITS.items():
        number = getattr(resource, name, None)
        if number is not None:
            soft, hard = map(_limit, resource.getrlimit(number))
            found.append((name, f"{soft}, at most {hard} ({meaning})"))
    quota = cpu_quota()
    found += [
        ("pids.max", _tightest_pids()),
        ("memory", f"{memory()} bytes, of the machine or by memory.max"),
        ("cpu quota", "none" if quota is None else f"{quota:g} CPUs"),
        ("CPUs", f"{available_cpus()} available of {os.cpu_count()}"),
        ("default of cpus", str(default_workers())),
    ]
    variables = sorted(name for name in os.environ if name.startswith("KILLERCALL_"))
    return found + [(name, repr(os.environ[name])) for name in variables]


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _tightest_pids() -> str:
    found: list[tuple[int, str]] = []
    for group, _ in enclosing_groups("pids"):
        try:
            limit, used = read(group, "pids.max"), read(group, "pids.current")
        except OSError:
            continue
        if limit.isdecimal():
            found.append((int(limit), f"{limit}, of which {used} are in use, in cgroup {group}"))
    return min(found)[1] if found else "none"


def _platform() -> Section:
    """What is used where it is there. Each is tried, in a way that changes nothing."""
    tried: dict[str, Callable[[], object]] = {
        "pidfd": _try_pidfd,
        "memfd": _try_memfd,
        "close_range": lambda: _syscall(_CLOSE_RANGE, 2**32 - 1, 2**32 - 1, 0),
        "child subreaper": lambda: _prctl(_PR_GET_CHILD_SUBREAPER),
        "parent death signal": lambda: _prctl(_PR_GET_PDEATHSIG),
        "kcmp": _try_kcmp,
        "list of children": lambda: _core.read_text(
            f"/proc/self/task/{os.getpid()}/children",
        ),
        "smaps_rollup": lambda: _core.read_text("/proc/self/smaps_rollup"),
        "clear_refs": lambda: os.close(os.open("/proc/self/clear_refs", os.O_WRONLY)),
        "MADV_COLLAPSE": _try_collapse,
    }
    return [(name, _outcome(attempt)) for name, attempt in tried.items()]


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"no: {errno.errorcode.get(error.errno or 0, 'unknown')}"
    except AttributeError:
        # Python has no name for it on this system.
        return "no"
    return "yes"


def _try_pidfd() -> None:
    import signal

    fd = os.pidfd_open(os.getpid())
    try:
        # No signal: only whether one could be sent.
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


def _try_memfd() -> None:
    import fcntl

    fd = os.memfd_create("killercall", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    finally:
        os.close(fd)


def _try_kcmp() -> None:
    number = _KCMP.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _syscall(number, os.getpid(), os.getpid(), _KCMP_VM, 0, 0)


def _try_collapse() -> None:
    import mmap

    # Wherever it begins, there is room for one huge page, and not for two. There must be something
    # on it. What is shared would have to begin at a multiple of the size.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 2 * _HUGE_PAGE - mmap.PAGESIZE, flags=flags) as area:
        area[_HUGE_PAGE - 1] = 1
        area.madvise(_MADV_COLLAPSE)


def _prctl(option: int) -> None:
    import ctypes

    _check(_libc().prctl(option, ctypes.byref(ctypes.c_int()), 0, 0, 0))


def _syscall(number: int, *arguments: int) -> None:
    import ctypes

    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _check(_libc().syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)))


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _check(returned: int) -> None:
    import ctypes

    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _workers() -> Section:
    """Of this process, those shared by all calls that have none of their own."""
    host = sys.modules.get("killercall._host")
    if host is None:
        return [("forkserver", "not running"), ("waiting", "none")]
    pids = ", ".join(map(str, sorted(host.idle_pids())))
    return [
        ("forkserver", "running" if host.has_server() else "not running"),
        ("waiting", f"pids {pids}" if pids else "none"),
    ]


__all__ = ["show_versions"]
