# SPDX-License-Identifier: Apache-2.0
"""A small Linux guest: Debian's cloud kernel, an initramfs that only finds the root, and a root
file system of busybox.  What the guest is to do is a word on its command line; what it has to say
comes out of its serial console."""

import functools
import os
import pathlib
import re
import shutil
import tempfile

import qemu
from cairntest import MIB, ROOT, Process, run, wait_for

KERNEL = ROOT / ".cache" / "kernel" / "vmlinuz"
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_blk")
ROOT_SIZE = 96 * MIB

INITRAMFS_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko || echo "no $module"; done
/bin/busybox mount -t ext4 /dev/vda /root || {{ echo "GUEST: no root"; /bin/busybox poweroff -f; }}
exec /bin/busybox switch_root /root /sbin/init
"""

# Does what the kernel's command line says, and says so on the console.
ROOT_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do case $word in cairn.*) export "${word#cairn.}" ;; esac; done
echo "GUEST: booted, layers: $(cat /etc/layer1 /etc/layer2 /etc/layer3 | tr '\\n' ' ')"
. /etc/jobs/$job
sync
mount -o remount,ro /
echo "GUEST: done"
poweroff -f
"""

JOBS = {
    "write": """
echo "written by the first guest" > /root/note
dd if=/dev/urandom of=/root/random bs=64k count=100 2>/dev/null
sha256sum /root/random > /root/random.sum
echo "GUEST: wrote $(cat /root/random.sum)"
""",
    "find": """
echo "GUEST: note: $(cat /root/note)"
sha256sum -c /root/random.sum && echo "GUEST: sum is right"
""",
    # Goes on until it is ended; each number is printed after its file is safe.
    "stream": """
i=1
while [ $i -le 1000000 ]; do
    dd if=/dev/urandom of=/root/f$i bs=16k count=2 2>/dev/null
    sha256sum /root/f$i > /root/f$i.sum
    sync
    echo "GUEST: synced $i"
    i=$((i + 1))
    [ $i -le 40 ] || rm -f /root/f$((i - 40)) /root/f$((i - 40)).sum
done
""",
    "count": """
i=$last
while [ $i -gt 0 ] && [ $i -gt $((last - 20)) ]; do
    sha256sum -c /root/f$i.sum > /dev/null || echo "GUEST: f$i is wrong"
    i=$((i - 1))
done
echo "GUEST: counted back from $last to $i"
""",
}


# -- Images ---------------------------------------------------------------------------------------

def cpio_entry(inode, name, mode, data=b""):
    """One member in the newc format of cpio."""
    name = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def find_module(name):
    return next(KERNEL.parent.glob(f"modules/*/kernel/**/{name}.ko"))


def make_initramfs(path):
    members = [(folder, 0o40755, b"") for folder in ("bin", "dev", "proc", "root", "modules")]
    members.append(("bin/busybox", 0o100755, pathlib.Path(shutil.which("busybox")).read_bytes()))
    members += [(f"modules/{name}.ko", 0o100644, find_module(name).read_bytes())
                for name in MODULES]
    init = INITRAMFS_INIT.format(modules=" ".join(MODULES))
    members.append(("init", 0o100755, init.encode()))
    members.append(("TRAILER!!!", 0, b""))
    path.write_bytes(b"".join(cpio_entry(number, *member)
                              for number, member in enumerate(members, 1)))
    return path


def make_root_folder(folder):
    for name in ("bin", "dev", "proc", "sbin", "root", "etc/jobs"):
        (folder / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), folder / "bin" / "busybox")
    (folder / "sbin" / "init").write_text(ROOT_INIT)
    (folder / "sbin" / "init").chmod(0o755)
    (folder / "etc" / "layer1").write_text("base\n")
    for name, text in JOBS.items():
        (folder / "etc" / "jobs" / name).write_text(text)


def make_chain(folder, furnish=None):
    """The root file system as three layers; each upper one adds a file.  The top's path.
    furnish(root) may put more into it."""
    root, state = folder / "root", folder / "root.raw"
    make_root_folder(root)
    if furnish:
        furnish(root)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, state, ROOT_SIZE // 1024)
    layer = folder / "layer1.qcow2"
    qemu.img("convert", "-c", "-O", "qcow2", state, layer)
    for number, text in ((2, "customised"), (3, "nightly")):
        before = state.read_bytes()
        note = folder / f"layer{number}"
        note.write_text(text + "\n")
        run("debugfs", "-w", "-R", f"write {note} /etc/layer{number}", state)
        layer = make_overlay(folder, layer, number, before, state.read_bytes())
    return layer


def make_overlay(folder, below, number, before, after):
    """A layer that holds the clusters in which two states differ."""
    path, step = folder / f"layer{number}.qcow2", 4096
    options = "extended_l2=on,cluster_size=128k" if number == 3 else "cluster_size=4k"
    qemu.img("create", "-q", "-f", "qcow2", "-o", options, "-b", below.name, "-F", "qcow2", path)
    commands = []
    for off in range(0, len(after), step):
        if before[off:off + step] != after[off:off + step]:
            piece = folder / f"piece{number}-{off}"
            piece.write_bytes(after[off:off + step])
            commands.append(f"write -q -s {piece} {off} {step}")
    qemu.io(path, *commands)
    return path


# -- Acceleration ---------------------------------------------------------------------------------

@functools.cache
def accelerator():
    """KVM if a guest really boots with it (some /dev/kvm are there and do not work), else TCG."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        probe = Process(["qemu-system-x86_64", "-accel", "kvm", *machine(folder, "probe")],
                        folder / "log")
        try:
            wait_for(lambda: not probe.running or "GUEST: " in console_text(folder, "probe"),
                     "a probing guest", timeout=10)
        except AssertionError:
            return "tcg"
        finally:
            probe.kill()
        return "kvm" if "GUEST: " in console_text(folder, "probe") else "tcg"


def machine(folder, name, append=""):
    """What all guests have: a kernel, an initramfs and a serial console; no disk."""
    return ["-m", "256", "-no-reboot", "-nodefaults", "-display", "none", "-monitor", "none",
            "-serial", f"file:{folder / name}.console", "-kernel", KERNEL,
            "-initrd", make_initramfs(folder / f"{name}.initramfs"),
            "-append", f"console=ttyS0 quiet panic=-1 {append}"]


def console_text(folder, name):
    path = folder / f"{name}.console"
    return path.read_text(errors="replace") if path.exists() else ""


# -- Guests ---------------------------------------------------------------------------------------

class Guest(Process):
    """QEMU, from the disk behind an NBD socket."""

    def __init__(self, folder, name, socket, job, **words):
        self.folder, self.name = folder, name
        append = " ".join([f"cairn.job={job}",
                           *(f"cairn.{key}={value}" for key, value in words.items())])
        super().__init__(
            ["qemu-system-x86_64", "-accel", accelerator(), *machine(folder, name, append),
             "-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={socket}",
             "-device", "virtio-blk-pci,drive=disk"],
            folder / f"{name}.log")

    def said(self):
        """What the guest printed, without the kernel's part."""
        return re.findall(r"GUEST: (.*?)\r?\n", console_text(self.folder, self.name))

    def describe(self):
        return f"{super().describe()}\nconsole: {console_text(self.folder, self.name)[-3000:]}"

    def wait_said(self, start, timeout=300):
        """Until the guest said something that starts so; all of that line."""
        def found():
            for line in self.said():
                if line.startswith(start):
                    return line
            self.check_running()
            return None
        return wait_for(found, f"the guest to say {start!r}", timeout)
