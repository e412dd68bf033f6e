"""The page: what was measured, on what, how, and who was faster."""

import math

from .engine import ALL, KINDS, LABELS

HOW = {
    "ottava": "int8: `prepare` → calibrate → `convert` → `Engine` (per-channel weights, min-max activations, `Algorithm::Auto`); "
              "f32: `fold_norms` → `convert` → `Engine`; images channels-last, as its loader gives them",
    "onnxruntime": "all graph optimisations, intra-op threads as stated, bound inputs and outputs; int8: its own static QDQ quantizer",
    "openvino": "latency hint, one stream, f32 precision; int8: ONNX Runtime's QDQ file imported",
    "torch": "networks: the fastest of eager channels-last, frozen TorchScript and inductor (f32), FX `x86` and PT2E X86Inductor (int8), chosen "
             "by timing; layers: the same without inductor; training: eager channels-last, without `torch.compile`",
    "litert": "XNNPACK; converted by litert-torch, quantized by ai-edge-quantizer (static, 8 bit)",
    "ncnn": "packing and Winograd on, 16-bit storage off; int8: symmetric, min-max, requantized between convolutions",
    "rten": "weights prepacked; int8: ONNX Runtime's QDQ file",
    "tract": "`into_optimized`; int8: ONNX Runtime's QDQ file",
    "candle": "CPU tensors, BatchNorm folded",
    "openblas": "NumPy's `matmul` into a given array",
    "burn": "`flex`, the CPU backend its documentation recommends; BatchNorm folded for inference, `autodiff` and its SGD for training",
    "gemm": "the crate alone, `Parallelism::Rayon`",
    "matrixmultiply": "the crate alone, feature `threading`",
}
TITLES = {
    "network": ("Networks", "Milliseconds a batch: ResNet-18 at 224×224, ResNet-20 (CIFAR) at 32×32."),
    "chain": ("One layer", "Milliseconds a layer: eight 3×3 convolutions with ReLU in a row, divided by eight; quantizing the input "
              "and dequantizing the output is included."),
    "gemm": ("Matrix products", "GOP/s (2·m·n·k ÷ time), m×n×k; weights packed beforehand where the engine can. int8 is u8×s8 with the sums as "
             "they are, codes the same requantized to u8. ⚠: fewer than 99 % of its integers are right."),
    "training": ("Training steps", "Milliseconds a step: forward, cross-entropy, backward, SGD with momentum; resnet18 at 224×224, the others at 32×32."),
}
QUIET = 0.9  # share of its time that a thread has a core
RIGHT = 0.99  # of the integers of a product
ENOUGH = 0.98  # cosine with the reference


def write(results, path):
    from .workloads import CHAIN, all_workloads

    order = {w["name"]: w for w in all_workloads()}
    busy = busyness(results["rows"])
    if busy < QUIET:
        results["rows"] = [{**row, "ms": row["cpu_ms"]} for row in results["rows"] if row["threads"] == 1]
    rows = {}
    for row in results["rows"]:
        rows.setdefault((row["workload"], row["threads"]), {})[row["engine"]] = row
    machine, out = results["machine"], []
    out += ["# Benchmarks", "",
            "Written by `python3 benches/peers/run.py`, which installs the peers, gives every engine the same weights and inputs, "
            "measures them in turn, and checks what they compute; training steps have weights and images of each engine's own, and are not checked. "
            "Times hold for this machine only; compare within a table.", "",
            f"- **Machine**: {machine['cpu']} (family {machine['family']}, model {machine['model']}), {machine['cores']} cores, "
            f"{', '.join(machine['isa'])}; {machine['system']}",
            *([f"- **Hidden**: what the CPU has beyond {machine['mask'].upper()} "
               f"(`benches/peers/masks/{machine['mask']}.c`): every engine takes the path of a CPU without it"] if "mask" in machine else []),
            f"- **Kernels**: Ottava's are those of {kernels(results['rows'])}",
            f"- **Run**: {runs(results['rows'])}; {results['minutes']:.0f} minutes in all, "
            f"load average at the end {results['load']}",
            "- **Versions**: " + ", ".join(f"{LABELS[n].strip('*')} {v}" for n, v in results["versions"].items())]
    if busy < QUIET:
        out += ["", f"> **The machine was not quiet.** With one thread, an engine had a core for {busy:.0%} of the time it was timed. "
                "Medians are therefore those of the process's CPU time; the best times in parentheses are wall time. Figures for more threads "
                "than one say nothing on such a machine, and are left out. Measure again on a quiet one."]
    out += ["", "Each cell is the median (best) over all rounds; **bold** is the fastest median. *lead* is the fastest peer's time divided by "
            "Ottava's, by medians (by bests): above 1 Ottava is ahead. In an int8 row, *lead on all* compares with the fastest peer at anything, "
            "f32 or int8.", ""]
    out += headlines(rows, results)
    for kind, (title, unit) in TITLES.items():
        keys = [k for k in rows if order[k[0]]["kind"] == kind]
        if not keys:
            continue
        engines = [n for n in ALL if any(n in rows[k] for k in keys)]
        out += [f"## {title}", "", unit, ""]
        for threads in sorted({t for _, t in keys}):
            out += [f"### {threads} thread{'s' * (threads > 1)}", "",
                    "| | " + " | ".join(LABELS[n] for n in engines) + " | lead | lead on all |",
                    "| --- |" + " --: |" * (len(engines) + 2)]
            for name in [n for n in order if (n, threads) in keys]:
                out.append(line(name, threads, rows, engines, order[name], CHAIN))
            out.append("")
    out += checks(results["rows"], order)
    if results["memory"]:
        out += memory(results["memory"])
    out += ["## Settings", "", "| engine | setting |", "| --- | --- |",
            *(f"| {LABELS[n]} | {HOW[n]} |" for n in ALL if n in {r['engine'] for r in results['rows']}), ""]
    chosen = {}
    for r in results["rows"]:
        if r["engine"] == "torch":
            chosen.setdefault(r["setting"], set()).add(r["workload"])
    if chosen:
        out += ["PyTorch's choices: " + "; ".join(f"{s}: {', '.join(sorted(names))}" for s, names in chosen.items()) + ".", ""]
    out += ["## Not measured", ""]
    out += [f"- {LABELS[n]}: {why}" for n, why in results["skipped"].items()] + reasons(results["reasons"])
    out += absent(results["rows"], results["reasons"], order)
    missing = [n for n in order if not any(n == name for name, _ in rows)]
    out += [f"- left out (`--only`, `--training`): {', '.join(missing)}"] * bool(missing)
    out += ["", "## How it is measured", "",
            "Every engine is a process of its own that answers `load`, `run`, `outputs`; the driver stops all but the one whose turn it is "
            "(`SIGSTOP`), so that no engine's waiting threads disturb another; all run on the same CPUs, as many as threads (Linux; rows of before "
            "8ffd424 did not), since one CPU may be slower than the next. After a warm-up each runs for the same time, at least three times, round after round, "
            "in alternating order, each turn with a run that is not timed (rows of before 2026-11-28 without). A network's weights are seeded random numbers with BatchNorm statistics taken from the calibration images and a "
            "classifier that tells the check images apart; the reference is a float network in numpy, which is not one of the engines. "
            "All int8 networks are quantized from the same weights with the same 16 calibration images.", ""]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(out))


def memory(peaks):
    """The most memory of a process, by what it did."""
    names = list(dict.fromkeys(m["workload"] for m in peaks))
    cells = {(m["engine"], m["workload"]): f"{m['peak'] / 1e6:.0f}" for m in peaks}
    out = ["## Memory", "", "Peak resident memory, in MB, of a fresh process that loads a workload and runs it five times "
           "(Python, where the engine's package is one, is part of it). PyTorch's process quantizes and compiles the network first; the others "
           "load one that is ready.", "",
           "| engine | " + " | ".join(names) + " |", "| --- |" + " --: |" * len(names)]
    for engine in [n for n in ALL if any(m["engine"] == n for m in peaks)]:
        out.append(f"| {LABELS[engine]} | " + " | ".join(cells.get((engine, name), "–") for name in names) + " |")
    return [*out, ""]


def kernels(rows):
    """The instruction sets that our engine names at the end of its settings."""
    return " and ".join(sorted({r["setting"].rpartition(", ")[2] for r in rows if r["engine"] == "ottava"}))


def runs(rows):
    """When and how which rows were measured; a line of a table is always from one run."""
    made = {}
    for r in rows:
        key = tuple(r["run"][part] for part in ("date", "commit", "rounds", "block"))
        made.setdefault(key, set()).add((r["workload"], r["threads"]))
    return "; ".join(f"{date} at {commit}, {rounds} rounds of {block:g} s an engine ({named(made[key])})"
                     for key in sorted(made) for date, commit, rounds, block in [key])


def named(lines):
    """Workloads on numbers of threads, those of one kind together."""
    kinds = {}
    for name, threads in lines:
        kinds.setdefault(name, set()).add(threads)
    grouped = {}
    for name, threads in sorted(kinds.items()):
        grouped.setdefault(tuple(sorted(threads)), []).append(name)
    return "; ".join(f"{', '.join(names)} on {' and '.join(map(str, threads))}" for threads, names in sorted(grouped.items()))


def absent(rows, reasons, order):
    """Engines that are on the page, but were not in the run of some lines that they could have been in."""
    lines = {(r["workload"], r["threads"]) for r in rows}
    here = {(r["engine"], r["workload"], r["threads"]) for r in rows + reasons}
    out = []
    for engine in [n for n in ALL if any(r["engine"] == n for r in rows)]:
        away = {line for line in lines if order[line[0]]["kind"] in KINDS[engine] and (engine, *line) not in here}
        if away:
            out.append(f"- {LABELS[engine]} was not in the run of these lines: {named(away)}")
    return out


def busyness(rows):
    """The share of its time that a single thread had a core."""
    single = [r for r in rows if r["threads"] == 1 and r["wall"]]
    return sum(r["cpu"] for r in single) / max(sum(r["wall"] for r in single), 1e-9) if single else 1.0


def leads(name, threads, rows):
    """(fastest peer ÷ ours) at the same precision and at any, by medians and by bests."""
    here = rows[name, threads]
    ours = here.get("ottava")
    if not ours:
        return None, None
    stem, _, precision = name.rpartition("-")
    anything = [r for p in ("f32", "int8") for r in rows.get((f"{stem}-{p}", threads), {}).values()]
    def ratio(peers):
        peers = [r for r in peers if r["engine"] != "ottava"]
        return tuple(min(r[key] for r in peers) / ours[key] for key in ("ms", "best")) if peers else None
    return ratio(here.values()), ratio(anything) if precision == "int8" else None


def show(ratio):
    return f"{ratio[0]:.2f} ({ratio[1]:.2f})" if ratio else ""


def line(name, threads, rows, engines, workload, chain):
    here, cells = rows[name, threads], []
    fastest = min(r["ms"] for r in here.values())
    for engine in engines:
        row = here.get(engine)
        if not row:
            cells.append("–")
            continue
        if workload["kind"] == "gemm":
            rate = lambda ms: f"{2 * row['macs'] / ms / 1e6:.0f}"
            wrong = " ⚠" if row.get("exact", 1.0) < RIGHT else ""
            text = f"{rate(row['ms'])} ({rate(row['best'])}){wrong}"
        else:
            share = chain if workload["kind"] == "chain" else 1
            text = f"{digits(row['ms'] / share)} ({digits(row['best'] / share)})"
        cells.append(f"**{text}**" if row["ms"] == fastest else text)
    return f"| {name.removeprefix('gemm-').removeprefix('train-')} | " + " | ".join(cells) + " | " + \
        " | ".join(show(r) for r in leads(name, threads, rows)) + " |"


def digits(ms):
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def headlines(rows, results):
    """Ahead or behind, in one table."""
    wanted = [("ResNet-18, batch 1", "resnet18-b1-int8"), ("ResNet-18, batch 8", "resnet18-b8-int8"),
              ("CIFAR ResNet-20, batch 1", "resnet20-b1-int8")]
    lines = []
    for label, name in wanted:
        for threads in sorted({t for n, t in rows if n == name}):
            _, ratio = leads(name, threads, rows)
            ours = rows[name, threads].get("ottava")
            if ours and ratio:
                peers = [r for p in ("f32", "int8") for r in rows.get((name.rpartition("-")[0] + f"-{p}", threads), {}).values()
                         if r["engine"] != "ottava"]
                best = min(peers, key=lambda r: r["ms"])
                lines.append(f"| {label} | {threads} | {digits(ours['ms'])} | {digits(best['ms'])} ({LABELS[best['engine']]}, "
                             f"{best['workload'].rpartition('-')[2]}) | {show(ratio)} |")
    if not lines:
        return []
    return ["| Ottava int8 against the fastest peer at anything | threads | ms | peer's ms | lead |",
            "| --- | --: | --: | --: | --: |", *lines, ""]


def checks(rows, order):
    """Who computed what it should."""
    out = ["## Results checked", "",
           "Check images whose class is the float reference's, and the cosine of all outputs with the reference's:", "",
           "| engine | f32 networks | int8 networks | worst cosine f32 | int8 | layers and products, worst | u8×s8 sums exact, worst | codes exact |",
           "| --- | --: | --: | --: | --: | --: | --: | --: |"]
    for engine in ALL:
        mine = [r for r in rows if r["engine"] == engine and r.get("cosine") is not None]
        if not mine:
            continue
        nets = {p: [r for r in mine if "agree" in r and r["workload"].endswith(p)] for p in ("f32", "int8")}
        agree = {p: f"{sum(r['agree'] for r in v)}/{sum(r['of'] for r in v)}" if v else "–" for p, v in nets.items()}
        low = lambda cosines: f"{min(cosines):.4f}" + (" ⚠" if min(cosines) < ENOUGH else "") if cosines else "–"
        worst = {p: low([r["cosine"] for r in v]) for p, v in nets.items()}
        rest = [r["cosine"] for r in mine if "agree" not in r]
        exact = []
        for precision in ("int8", "codes"):
            shares = [r["exact"] for r in mine if "exact" in r and r["workload"].endswith(precision)]
            # Downwards: one wrong sum of a million is not 100 %.
            exact.append(f"{math.floor(min(shares) * 1e4) / 100:.2f}%" + (" ⚠" if min(shares) < 1 else "") if shares else "–")
        out.append(f"| {LABELS[engine]} | {agree['f32']} | {agree['int8']} | {worst['f32']} | {worst['int8']} | {low(rest)} | {' | '.join(exact)} |")
    wrong = sorted({f"{LABELS[r['engine']]}, {r['workload']} ({r['threads']}): {r.get('check')}" for r in rows
                    if r.get("cosine", 1) is None})
    return [*out, *([""] + [f"- {w}" for w in wrong] if wrong else []), ""]


def reasons(found):
    """A reason once for all workloads it holds for."""
    grouped = {}
    for r in found:
        grouped.setdefault((r["engine"], r["reason"]), set()).add(r["workload"].split("-")[0])
    return [f"- {LABELS[e]}: {why} ({', '.join(sorted(names))})" for (e, why), names in grouped.items()]
