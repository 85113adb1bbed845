"""Seconds and peak memory of one piece of work in this process."""

import os
import time


def kib(field):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


class Stopwatch:
    """`with Stopwatch() as s: …`, then `s.result`: seconds and peak memory.

    `cpu_seconds` and, of these, `system_seconds` (page faults, mostly) are summed over threads: on
    a machine with other work they say more than `seconds`.

    The high-water mark of this process is set back to what is resident when the work starts
    (imports, model and data are in). `peak_mib_above_start` is the peak above what was resident
    when the *first* part began: as the allocator keeps what earlier parts freed, this is what the
    whole work needs up to here. `start_mib` is what was resident then.
    """

    first_resident = None

    def __enter__(self):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        if Stopwatch.first_resident is None:
            Stopwatch.first_resident = kib("VmRSS")
        self.before = os.times()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        seconds = time.perf_counter() - self.start
        now = os.times()
        system = now.system - self.before.system
        self.result = {
            "seconds": seconds,
            "cpu_seconds": now.user - self.before.user + system,
            "system_seconds": system,
            "peak_mib_above_start": (kib("VmHWM") - Stopwatch.first_resident) / 1024,
            "start_mib": Stopwatch.first_resident / 1024,
        }
