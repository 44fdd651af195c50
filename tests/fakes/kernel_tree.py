"""The kernel's files about control groups below a folder, with /proc as recorded on real machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DISK: Final = "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"


@dataclass(frozen=True)
class Layout:
    """How a distribution mounts control groups; `own` and `top` stand for the group and for what the mount shows."""

    membership: str
    mounts: str
    folders: tuple[str, ...]
    """Where a group's files are, `controller` by `controller`."""


V2: Final = Layout(
    membership="0::{own}\n",
    mounts=_DISK + "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    folders=("sys/fs/cgroup",),
)
V1: Final = Layout(
    membership="9:memory:{own}\n5:cpuset:/\n4:cpu,cpuacct:{own}\n1:name=systemd:{own}/init.scope\n",
    mounts=_DISK
    + "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    + "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n"
    + "36 31 0:33 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:8 - cgroup cgroup rw,cpu,cpuacct\n"
    + "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n",
    folders=("sys/fs/cgroup/memory", "sys/fs/cgroup/cpu,cpuacct"),
)
HYBRID: Final = Layout(
    membership=V1.membership + "0::{own}\n",
    mounts=V1.mounts + "41 31 0:38 {top} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
    folders=V1.folders,
)


def grow(root: Path, layout: Layout, *, own: str, groups: Mapping[str, Mapping[str, object]], top: str = "/") -> Path:
    """Writes the tree below `root` and returns it. `groups` has the files of each group, as the mount shows them."""
    _write(root / "proc/self/cgroup", layout.membership.format(own=own))
    _write(root / "proc/self/mountinfo", layout.mounts.format(top=top))
    for folder in layout.folders:
        controllers = folder.rpartition("/")[2].split(",")
        for group, files in groups.items():
            for name, content in files.items():
                if layout is V2 or name.partition(".")[0] in controllers:
                    _write(root / folder / group.lstrip("/") / name, f"{content}\n")
    return root


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
