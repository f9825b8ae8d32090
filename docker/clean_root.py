"""A clean Debian root in a folder, and processes in it as a container engine would run them.

Everything that is mounted lies in a mount namespace of the process and ends with it. The root gets devices of its own:
nothing that runs in it can harm those of this machine.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# $1 is the root, $2 says which mounts it gets, one to a line; what follows is run in the root.
_ENTER = r"""
set -eu
root=$1; mounts=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 -o ro cgroup2 "$root/sys/fs/cgroup" || true
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod "$root/dev/${node%:*}" c 1 "${node#*:}"
    chmod 666 "$root/dev/${node%:*}"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
for file in /etc/resolv.conf /etc/hosts; do
    touch "$root$file"
    mount --bind "$file" "$root$file"
done
printf '%s' "$mounts" | while IFS=' ' read -r kind inside outside; do
    case $kind in
    file) mkdir -p "$root$(dirname "$inside")"; touch "$root$inside"; mount --bind -o ro "$outside" "$root$inside" ;;
    folder) mkdir -p "$root$inside"; mount --bind -o ro "$outside" "$root$inside" ;;
    volume) mount --bind "$outside" "$root$inside" ;;
    temporary) mount -t tmpfs -o mode=1777 tmpfs "$root$inside" ;;
    sealed) mount -o remount,bind,ro "$root" ;;
    esac
done
exec chroot "$root" "$@"
"""
# As in Debian's images: apt keeps neither packages nor its own caches.
_APT_KEEPS_NOTHING = """APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
# What a hardened container is left with: no capability, and none to be had by a set-user-id program.
_HARDENED = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a process sees beside the root: host paths lent read-only, folders to write to, folders in memory."""

    lent: Mapping[str, Path] = field(default_factory=dict)
    volumes: Mapping[str, Path] = field(default_factory=dict)
    temporary: Sequence[str] = ()
    is_sealed: bool = False

    def describe(self) -> str:
        """One line for each, as the script that makes them reads them."""
        lines = [
            f"{'folder' if path.is_dir() else 'file'} {inside} {path}" for inside, path in self.lent.items()
        ]
        lines += ["sealed x x"] if self.is_sealed else []
        lines += [f"volume {inside} {path}" for inside, path in self.volumes.items()]
        lines += [f"temporary {inside} x" for inside in self.temporary]
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Task:
    """What runs in a root: `user` is `uid:gid`."""

    command: Sequence[str]
    user: str
    folder: str
    environment: Mapping[str, str]

    def arguments(self) -> list[str]:
        """The command line within the root."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = ["/usr/bin/env", "-i", f"--chdir={self.folder}", *variables, *self.command]
        uid, _, gid = self.user.partition(":")
        if uid in ("0", "root"):
            return command
        return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid or uid}", *_HARDENED, *command]


def make_base(folder: Path, suite: str) -> None:
    """Debian's smallest root in `folder`, by debootstrap, unless it is there already."""
    if (folder / "etc/debian_version").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(partial)], check=True)
    for kept in (partial / "var/cache/apt").rglob("*"):
        if kept.is_file():
            kept.unlink()
    (partial / "etc/apt/apt.conf.d/keep-nothing").write_text(_APT_KEEPS_NOTHING, encoding="ascii")
    partial.rename(folder)


def run(root: Path, task: Task, mounts: Mounts) -> int:
    """Run a task to its end; gives its exit code."""
    return subprocess.run(_enter(root, task, mounts), check=False).returncode


class Running:
    """A task that goes on, as the first process of its namespace, like that of a container."""

    def __init__(self, root: Path, task: Task, mounts: Mounts) -> None:
        self._task = task
        self._process = subprocess.Popen(_enter(root, task, mounts))

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run another command beside it, as the same user."""
        task = Task(command, self._task.user, self._task.folder, self._task.environment)
        into = ["nsenter", f"--target={self._first_process()}", "--mount", "--pid", "--root", "--wd"]
        return subprocess.run([*into, *task.arguments()], check=False, capture_output=True, text=True)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout_s: float) -> int:
        """SIGTERM; gives the exit code. Raises TimeoutExpired, once it was killed."""
        if self.is_running():
            subprocess.run(["kill", f"-{int(signal.SIGTERM)}", str(self._first_process())], check=True)
        try:
            return self._process.wait(timeout_s)
        finally:
            self._process.kill()
            self._process.wait()

    def _first_process(self) -> int:
        parent = self._process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()[0])


def measure(root: Path) -> int:
    """Bytes that the files of a root take on disk."""
    printed = subprocess.run(["du", "-s", "-x", "-B1", str(root)], check=True, capture_output=True, text=True)
    return int(printed.stdout.split()[0])


def _enter(root: Path, task: Task, mounts: Mounts) -> list[str]:
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*apart, "sh", "-c", _ENTER, "enter", str(root), mounts.describe(), *task.arguments()]
