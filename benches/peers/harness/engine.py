"""An engine's process, as the driver sees it."""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
from pathlib import Path

PYTHON = ["onnxruntime", "openvino", "torch", "litert", "ncnn", "openblas"]
RUST = ["ottava", "rten", "tract", "candle", "burn", "gemm", "matrixmultiply"]
# Engines that are one program, told which of them it is.
SHARED = {"gemm": "products", "matrixmultiply": "products"}
ALL = ["ottava", *PYTHON, *RUST[1:]]
LABELS = {"ottava": "**Ottava**", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch",
          "litert": "LiteRT", "ncnn": "ncnn", "openblas": "OpenBLAS", "rten": "rten", "tract": "tract", "candle": "candle",
          "burn": "burn", "gemm": "gemm", "matrixmultiply": "matrixmultiply"}
NETWORKS = {"network", "chain"}
KINDS = {name: NETWORKS for name in ALL} | {
    **{name: NETWORKS | {"gemm"} for name in ("onnxruntime", "openvino")},
    **{name: {"gemm"} for name in ("openblas", "gemm", "matrixmultiply")},
    **{name: NETWORKS | {"gemm", "training"} for name in ("ottava", "torch")},
    "burn": NETWORKS | {"training"},
}
DISTRIBUTIONS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "litert": "ai-edge-litert",
                 "ncnn": "ncnn"}


def of_cores(cpus):
    """CPUs in the order to take them: one of each core before any that shares its core."""
    def place(cpu):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first = re.match(r"\d+", siblings.read_text()) if siblings.exists() else None
        return first is not None and int(first[0]) != cpu, cpu
    return sorted(cpus, key=place)


@contextlib.contextmanager
def same_cpus(count):
    """Processes started meanwhile stay on the first `count` CPUs: one CPU may be slower for minutes, by its
    neighbours on the host, and each process would stick to one or the other."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, of_cores(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class Gone(Exception):
    """The process ended or did not answer."""


class Engine:
    """Started stopped: it runs only between `resume` and `pause`, so that the threads of an engine
    whose turn it is not (several spin while they wait) take nothing from the one that is measured."""

    def __init__(self, name, threads, args, here, log):
        self.name, self.threads = name, threads
        cache = args.cache
        if name in PYTHON:
            command = [sys.executable, str(here / "engines" / f"{name}_engine.py")]
        else:
            command = [str(cache / "rust" / "release" / f"{SHARED.get(name, name)}-engine")]
        count = str(threads)
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
                         "RTEN_NUM_THREADS", "CANDLE_NUM_THREADS", "MATMUL_NUM_THREADS"):
            environment[variable] = count
        # Older BLAS builds are told a core type here and there; peers run at their own choice.
        environment.pop("OPENBLAS_CORETYPE", None)
        if args.mask:
            environment["LD_PRELOAD"] = str(args.mask)
        with same_cpus(threads):
            self.process = subprocess.Popen(
                [*command, str(cache / "models"), count, *([name] if name in SHARED else [])], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True)
        self.pause()

    def resume(self):
        self.signal(signal.SIGCONT)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def signal(self, number):
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def ask(self, command, timeout=60):
        """Resumes, asks, pauses; the answer."""
        self.resume()
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self.process.stdout, selectors.EVENT_READ)
                if not selector.select(timeout):
                    self.kill()
                    raise Gone(f"no answer within {timeout} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Gone("the process ended")
        self.pause()
        return json.loads(line)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()
