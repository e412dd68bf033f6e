#!/usr/bin/env python3
"""Measures Ottava beside its peers, interleaved in one run, and writes docs/benchmarks.md.

    python3 benches/peers/run.py                 # set up what is missing, measure, write the page
    python3 benches/peers/run.py --only gemm     # workloads whose name contains a word
    python3 benches/peers/run.py --training      # training steps as well
    python3 benches/peers/run.py --quick         # fewer and shorter turns: everything in about 20 minutes
    python3 benches/peers/run.py --avx2          # as on a CPU that has AVX2 and nothing newer
    python3 benches/peers/run.py --page          # write the page again from the last run

Everything that is downloaded or built goes to a cache directory (`--cache`, by default
`$XDG_CACHE_HOME/ottava-peers`). A peer that cannot be installed, built or run is named in the page,
with the reason.
What a run measures replaces what an earlier one said of the same workload and threads; the rest of the
earlier results stays, as long as the machine is the same (`--fresh` forgets them).
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from harness import setup  # noqa: E402


def arguments():
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=home / "ottava-peers")
    parser.add_argument("--engines", nargs="*", help="only these (ours is always among them)")
    parser.add_argument("--only", nargs="*", default=[""], help="only workloads whose name contains one of these")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help="turns an engine has (5; 3 if quick)")
    parser.add_argument("--block", type=float, help="seconds an engine runs before the next has its turn (0.2; 0.1 if quick)")
    parser.add_argument("--quick", action="store_true", help="training too, all in about 20 minutes on a quiet machine")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--training", action="store_true", help="measure training steps too")
    parser.add_argument("--avx2", action="store_true", help="hide from every engine what the CPU has beyond AVX2 (x86 Linux)")
    parser.add_argument("--no-setup", action="store_true", help="install and build nothing")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page from the last results")
    parser.add_argument("--out", type=Path, help="the page (docs/benchmarks.md; docs/benchmarks-avx2.md with --avx2)")
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    args.out = args.out or ROOT / "docs" / ("benchmarks-avx2.md" if args.avx2 else "benchmarks.md")
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.block = args.block or (0.1 if args.quick else 0.2)
    args.training |= args.quick
    return args


def keep(path, results):
    """Whole or not at all: a run may be cut short."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1))
    new.replace(path)


def main():
    args = arguments()
    # An orderly end: engines are stopped processes, and would stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    python = args.cache / "venv" / "bin" / "python"
    if Path(sys.prefix).resolve() != (args.cache / "venv").resolve():
        if not args.no_setup and not args.page:
            setup.python_packages(args.cache)
        # The rest runs inside the environment that was just made.
        os.execv(python, [str(python), *sys.argv])

    from harness import measure, merge, report, workloads

    results = args.cache / ("results-avx2.json" if args.avx2 else "results.json")
    if not args.page:
        args.mask = setup.mask(args.cache, HERE / "masks" / "avx2.c") if args.avx2 else None
        skipped = {} if args.no_setup else setup.rust_engines(args.cache, HERE / "rust")
        workloads.prepare(args.cache / "models")
        earlier = json.loads(results.read_text()) if results.exists() and not args.fresh else None
        measure.measure(args, HERE, skipped, lambda measured: keep(results, merge.merged(earlier, measured)))
    report.write(json.loads(results.read_text()), args.out)
    print(f"wrote {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
