"""The engine's side of the protocol, and what the engines share.

An engine is a process started as `ENGINE MODELS THREADS`. It reads one command a line and answers
with one line of JSON:

    load WORKLOAD   {"setting": "how it was configured"} or {"skip": "why it cannot"}
    run N           {"ms": [N wall times], "cpu": process CPU milliseconds of all N}
    outputs PATH    {"ok": true}, having written the outputs of all check inputs as raw f32
    rss             {"peak": bytes}
    quit

`rust/src/lib.rs` is the same for engines written in Rust.
"""

import json
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np


class Model:
    """What `load` returns: `run()` is timed, `outputs()` yields the output for each check input."""

    def __init__(self, run, outputs, setting):
        self.run, self.outputs, self.setting = run, outputs, setting


class Skip(Exception):
    """The engine cannot do this workload; the message says why."""


class Files:
    """The files of one workload."""

    def __init__(self, directory, workload):
        self.directory, self.workload = directory, workload
        self.model, self.precision = workload["model"], workload["precision"]
        self.batch = workload.get("batch", 1)
        self.wanted = workload.get("setting")  # the setting that won before, if it did
        self.info = json.loads((directory / "manifest.json").read_text()).get(self.model)

    def path(self, kind):
        return self.directory / f"{self.model}.{kind}"

    def onnx(self):
        return str(self.path(f"b{self.batch}.{self.precision}.onnx"))

    def nodes(self):
        return json.loads(self.path("json").read_text())["nodes"]

    def images(self, kind="inputs"):
        return np.fromfile(self.path(kind), np.float32).reshape(-1, *self.info["input"])

    def batches(self):
        """The check inputs, in batches of the workload's size."""
        images = self.images()
        return [images[i:i + self.batch] for i in range(0, len(images), self.batch)]

    def gemm(self):
        m, n, k = (self.workload[x] for x in "mnk")
        a, b, kinds = ("a.f32", "b.f32", (np.float32,) * 2) if self.precision == "f32" else \
            ("a.u8", "b.s8", (np.uint8, np.int8))
        return (aligned(np.fromfile(self.path(a), kinds[0]).reshape(m, k)),
                aligned(np.fromfile(self.path(b), kinds[1]).reshape(k, n)))


def aligned(array, line=64):
    """The same from a cache line on, as every engine gets it: NumPy begins anywhere, and rows that straddle two lines are slower."""
    memory = np.empty(array.nbytes + line, np.uint8)
    start = -memory.ctypes.data % line
    copy = memory[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def fastest(candidates, wanted=None):
    """The fastest of several (setting, make run), or the wanted one; what fails does not take part."""
    best, failures = None, []
    if any(setting == wanted for setting, _ in candidates):
        candidates = [c for c in candidates if c[0] == wanted]
    for setting, make in candidates:
        try:
            run = make()
            for _ in range(3):
                run()
            times = []
            while len(times) < 5 or (sum(times) < 0.2 and len(times) < 200):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            took = sorted(times)[len(times) // 2]
            if best is None or took < best[0]:
                best = (took, setting, run)
        except Exception as error:  # noqa: BLE001: a peer's failure is a finding, not a crash
            failures.append(f"{setting}: {str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__}")
            traceback.print_exc()
    if best is None:
        raise Skip("; ".join(failures))
    return best[1], best[2]


def peak_rss():
    """Bytes. Linux hands `ru_maxrss` on from the process that started this one; its own file is this one's alone."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(load):
    """`load(files, threads)` returns a `Model` or raises `Skip`."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output; replies must be alone there
    directory, threads = Path(sys.argv[1]), int(sys.argv[2])
    model = None

    def reply(**fields):
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        try:
            if command == "load":
                model = None
                model = load(Files(directory, json.loads(argument)), threads)
                reply(setting=model.setting)
            elif command == "run":
                times, cpu = [], time.process_time()
                for _ in range(int(argument)):
                    start = time.perf_counter()
                    model.run()
                    times.append((time.perf_counter() - start) * 1e3)
                reply(ms=times, cpu=(time.process_time() - cpu) * 1e3)
            elif command == "outputs":
                with open(argument, "wb") as file:
                    for output in model.outputs():
                        file.write(np.ascontiguousarray(output, np.float32).tobytes())
                reply(ok=True)
            elif command == "rss":
                reply(peak=peak_rss())
            elif command == "quit":
                return
        except Skip as reason:
            reply(skip=str(reason))
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            reply(skip=f"{type(error).__name__}: {str(error).strip()[:300]}")
