"""The measurement: every engine has its turn in every round, for the same time."""

import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .engine import ALL, DISTRIBUTIONS, Engine, Gone
from .workloads import all_workloads

LOAD_TIMEOUT = 400  # conversion and compilation included
RUN_TIMEOUT = 120
PEAKS = ["resnet18-b1-int8", "train-resnet20-b128-f32", "train-resnet20-b128-qat"]  # whose memory is measured
LEAST = 3  # iterations of a turn
SLOW = 1500  # milliseconds: one iteration a round, three rounds at most


def measure(args, here, skipped, save):
    """All workloads; `save` gets what there is after each, so that a run that is cut short leaves a page."""
    started = time.time()
    manifest = json.loads((args.cache / "models" / "manifest.json").read_text())
    kinds = {"network", "chain", "gemm"} | ({"training"} if args.training else set())
    chosen = [w for w in all_workloads() if w["kind"] in kinds and any(word in w["name"] for word in args.only)]
    names = ["ottava", *(n for n in ALL[1:] if n not in skipped and (not args.engines or n in args.engines))]
    skipped |= {n: "left out (`--engines`)" for n in ALL if n not in names and n not in skipped}
    found = versions(here)
    args.run = {"date": datetime.date.today().isoformat(), "commit": found["ottava"], "rounds": args.rounds, "block": args.block}
    results = {"machine": machine(args.mask), "versions": found, "skipped": skipped, "reasons": [], "rows": [], "memory": []}

    def keep():
        save({**results, "minutes": (time.time() - started) / 60, "load": Path("/proc/loadavg").read_text().split()[0]})

    with open(args.cache / "engines.log", "w") as log:
        for threads in args.threads:
            engines = {}
            try:
                for name in names:
                    try:
                        engines[name] = Engine(name, threads, args, here, log)
                    except OSError as error:
                        skipped[name] = f"cannot be started: {error.strerror}"
                for workload in chosen:
                    results["rows"] += one(workload, engines, threads, args, here, log, manifest, results["reasons"])
                    keep()
            finally:
                for engine in engines.values():
                    engine.kill()
            if threads == args.threads[0]:
                results["memory"] = peaks(results["rows"], args, here, log)
                keep()


def one(workload, engines, threads, args, here, log, manifest, reasons):
    """One workload on all engines, interleaved."""
    print(f"{threads} threads: {workload['name']}", file=sys.stderr, flush=True)
    rows = {}
    for name, engine in list(engines.items()):
        try:
            answer = engine.ask("load " + json.dumps(workload), LOAD_TIMEOUT)
            if "skip" not in answer:
                warm = engine.ask("run 1", RUN_TIMEOUT)
                if warm.get("ms", [SLOW])[0] < SLOW:
                    # A second time if that is cheap: the first may plan or compile.
                    warm = engine.ask("run 1", RUN_TIMEOUT)
                answer |= warm
            if "skip" in answer:
                reasons.append({"engine": name, "workload": workload["name"], "threads": threads, "reason": answer["skip"]})
                continue
            first = answer["ms"][0]
            check = compare(engine, workload, manifest, args.cache)
            rows[name] = {"engine": name, "workload": workload["name"], "threads": threads, "setting": answer["setting"],
                          "run": args.run, "medians": [], "cpu_medians": [], "best": first, "cpu": 0.0, "wall": 0.0, "first": first, **check}
        except (Gone, OSError) as error:
            reasons.append({"engine": name, "workload": workload["name"], "threads": threads, "reason": str(error)})
            engine.kill()
            engines[name] = Engine(name, threads, args, here, log)
    for turn in range(args.rounds):
        # Every other round goes backwards, so that nobody always follows the same neighbour.
        for name in sorted(rows, key=ALL.index, reverse=turn % 2 == 1):
            row = rows[name]
            slow = row["first"] > SLOW
            if slow and turn >= 3:
                continue
            count = 1 if slow else max(LEAST, min(2000, int(args.block * 1e3 / max(row["first"], 1e-3))))
            try:
                if not slow:
                    # Not timed: the others have had the caches.
                    engines[name].ask("run 1", RUN_TIMEOUT)
                answer = engines[name].ask(f"run {count}", RUN_TIMEOUT)
            except Gone as error:
                answer = {"skip": str(error)}
                engines[name].kill()
                engines[name] = Engine(name, threads, args, here, log)
            if "skip" in answer:
                reasons.append({"engine": name, "workload": workload["name"], "threads": threads, "reason": answer["skip"]})
                del rows[name]
                continue
            row["medians"].append(statistics.median(answer["ms"]))
            row["best"] = min(row["best"], *answer["ms"])
            row["wall"] += sum(answer["ms"])
            row["cpu"] += answer["cpu"]
            row["cpu_medians"].append(answer["cpu"] / count)
            row["first"] = row["medians"][-1]
    for row in rows.values():
        row["ms"] = statistics.median(row["medians"])
        row["cpu_ms"] = statistics.median(row["cpu_medians"])
        row["macs"] = manifest.get(workload["model"], {}).get("macs", 0) * workload.get("batch", 1)
    return list(rows.values())


def compare(engine, workload, manifest, cache):
    """An engine's outputs for the check inputs against the float reference."""
    if workload["kind"] == "training":
        return {}
    models = cache / "models"
    kind = f"reference.{workload['precision']}" if workload["kind"] == "gemm" else "reference"
    reference = np.fromfile(models / f"{workload['model']}.{kind}", np.float32)
    with tempfile.NamedTemporaryFile(dir=cache) as file:
        answer = engine.ask(f"outputs {file.name}", RUN_TIMEOUT)
        if "skip" in answer:
            return {"cosine": None, "check": answer["skip"]}
        outputs = np.fromfile(file.name, np.float32)
    if outputs.size != reference.size:
        return {"cosine": None, "check": f"{outputs.size} numbers instead of {reference.size}"}
    a, b = outputs.astype(np.float64), reference.astype(np.float64)
    result = {"cosine": float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))}
    if kind in ("reference.int8", "reference.codes"):
        result["exact"] = float((a == b).mean())
    if workload["kind"] == "network":
        classes = manifest[workload["model"]]["output"][0]
        a, b = (x.reshape(-1, classes).argmax(1) for x in (a, b))
        result["agree"], result["of"] = int((a == b).sum()), len(a)
    return result


def peaks(rows, args, here, log):
    """The most memory of a fresh process that does one thing and nothing else."""
    workloads = {w["name"]: w for w in all_workloads() if w["name"] in PEAKS}
    result = []
    for row in [r for r in rows if r["workload"] in workloads and r["threads"] == args.threads[0]]:
        workload = workloads[row["workload"]]
        engine = Engine(row["engine"], args.threads[0], args, here, log)
        try:
            if "skip" in engine.ask("load " + json.dumps({**workload, "setting": row["setting"]}), LOAD_TIMEOUT):
                continue
            engine.ask("run 5", RUN_TIMEOUT)
            result.append({"engine": row["engine"], "workload": workload["name"], "peak": engine.ask("rss")["peak"]})
        except Gone:
            pass
        finally:
            engine.kill()
    return result


def machine(mask):
    info = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    flags = set(info.get("flags", info.get("Features", "")).split())
    known = ["sse4_1", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd",
             "asimddp", "i8mm"]
    if mask:
        known = known[:known.index("fma") + 1]
    return {"cpu": info.get("model name", platform.processor()), "family": info.get("cpu family"),
            "model": info.get("model"), "isa": [f for f in known if f in flags],
            "cores": len([l for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("processor")]),
            "system": platform.platform(terse=True), **({"mask": mask.stem} if mask else {})}


def versions(here):
    found = {}
    for name, package in DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    if "openblas" in blas["name"].lower():
        found["openblas"] = blas["version"]
    crates = {"rten": "rten", "tract": "tract-onnx", "candle": "candle-core", "burn": "burn", "gemm": "gemm",
              "matrixmultiply": "matrixmultiply"}
    lock = (here / "rust" / "Cargo.lock")
    lines = lock.read_text().splitlines() if lock.exists() else []
    for name, crate in crates.items():
        if f'name = "{crate}"' in lines:
            found[name] = lines[lines.index(f'name = "{crate}"') + 1].split('"')[1]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    found["ottava"] = commit.stdout.strip()
    return found
