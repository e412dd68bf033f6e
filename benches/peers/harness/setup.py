"""Installs the peers: Python packages into an environment of their own, Rust crates by cargo."""

import os
import subprocess
import sys
import venv

# Each line is installed on its own, so that one that fails takes no other with it.
PACKAGES = [
    ["numpy", "onnx", "onnxruntime"],  # needed: they write the files that everybody reads
    ["openvino"],
    ["torch", "safetensors"],
    ["torchao"],
    ["ncnn"],
    ["ai-edge-litert", "litert-torch", "ai-edge-quantizer"],
]
RUST = {"rten": ["rten"], "tract": ["tract"], "candle": ["candle"], "burn": ["burn"], "products": ["gemm", "matrixmultiply"]}


def python_packages(cache):
    """A virtual environment with every peer that can be had; pip's own settings apply."""
    python = cache / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(cache / "venv", with_pip=True)
    for i, packages in enumerate(PACKAGES):
        wanted = [p for p in packages if not installed(python, p)]
        if not wanted:
            continue
        print(f"installing {' '.join(wanted)}", file=sys.stderr)
        done = subprocess.run(["nice", str(python), "-m", "pip", "install", "--quiet", *wanted])
        if done.returncode and i == 0:
            sys.exit(f"cannot install {' '.join(wanted)}: nothing can be measured without them")


def installed(python, package):
    command = [str(python), "-c", f"import importlib.metadata as m; m.version({package!r})"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def rust_engines(cache, project):
    """Builds our engine and each peer's; returns why a peer is missing."""
    skipped = {}
    build(cache, project, "ottava") or sys.exit("our own engine does not build")
    for name, engines in RUST.items():
        if not build(cache, project, name):
            skipped |= {engine: "does not build here" for engine in engines}
    return skipped


def build(cache, project, name):
    environment = {**os.environ, "CARGO_TARGET_DIR": str(cache / "rust")}
    command = ["nice", "cargo", "build", "--release", "--quiet", "--features", name, "--bin", f"{name}-engine"]
    return subprocess.run(command, cwd=project, env=environment).returncode == 0


def mask(cache, source):
    """A library that hides from the process that preloads it what its CPU has."""
    library = cache / f"{source.stem}.so"
    try:
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source], check=True)
        subprocess.run(["true"], env={**os.environ, "LD_PRELOAD": str(library)}, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("--avx2 needs a C compiler, x86 Linux, and a CPU that can trap CPUID (`cpuid_fault` in /proc/cpuinfo)")
    return library
