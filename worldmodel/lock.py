"""One trainer a run: a lock file that names its holder, and notices when the holder is dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldmodel.errors import StorageError, UsageError

_BEAT_SECONDS = 15.0
_SILENT_SECONDS = 120.0  # eight missed beats


class Lock:
    """Context manager: holds `folder`/lock.json while the process lives.

    A holder on this machine is dead when its pid is gone or was given to a younger process. A holder elsewhere
    (another host, container or boot) cannot be asked: it is dead when it has not touched the file for two minutes.
    So a killed trainer never blocks its successor for long, and nobody deletes lock files by hand.

    Raises UsageError naming the holder when it is alive, StorageError when the lock cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = Path(folder) / "lock.json"
        self._mine: dict[str, Any] | None = None
        self._done = threading.Event()

    def __enter__(self) -> Lock:
        mine = {"pid": os.getpid(), "start": start_time(os.getpid()), "where": _where(), "host": socket.gethostname()}
        mine["token"] = os.urandom(8).hex()
        draft = self.path.with_name(f"lock.json.tmp-{os.getpid()}-{mine['token']}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(self.path.parent):
                draft.write_text(json.dumps(mine))
                self._refuse_living(now=draft.stat().st_mtime)
                os.replace(draft, self.path)
        except OSError as error:
            text = f"cannot lock {self.path.parent}: {error.strerror}; choose a folder you may write to"
            raise StorageError(text) from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        self._mine = mine
        self._done.clear()
        threading.Thread(target=self._beat, name="worldmodel-lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        mine, self._mine = self._mine, None
        if mine and mine["pid"] == os.getpid() and self._read() == mine:  # a forked child must not release it
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _refuse_living(self, now: float) -> None:
        holder = self._read()
        if holder is None:
            return  # free, or unreadable: then its writer died before it held anything
        pid, start = holder.get("pid"), holder.get("start")
        if holder.get("where") == _where():
            alive = isinstance(pid, int) and running(pid) and (start is None or start_time(pid) == start)
        else:  # compared with the file system's own clock, so that skewed clocks do no harm
            alive = now - self.path.stat().st_mtime < _SILENT_SECONDS
        if alive:
            raise UsageError(f"{self.path.parent} is in use by process {pid or '?'} on {holder.get('host', '?')}; "
                             f"stop it first, or choose another --out")  # fmt: skip

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self.path.read_text())
        except PermissionError:
            return {}  # another user's; only its age can be judged
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _beat(self) -> None:
        mine = self._mine
        while not self._done.wait(_BEAT_SECONDS):
            if self._read() != mine:
                return  # deleted by hand, or taken over while this machine slept
            with contextlib.suppress(OSError):
                os.utime(self.path)


def running(pid: int) -> bool:
    """Whether a process of this machine has `pid` and is not merely waiting to be reaped."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return pid < 1 << 31
    return _stat(pid)[:1] not in (["Z"], ["X"])


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None where /proc does not tell."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on: the second, the command, may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _where() -> str:
    """Names the space in which our pid means something: host, boot, pid namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Serialises look-then-take between processes; the kernel lets go when one dies. Best effort elsewhere."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
