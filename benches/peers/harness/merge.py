"""Results of several runs as one."""


def merged(earlier, measured):
    """What was measured, and of an earlier run on the same machine what was not measured again.

    A workload on a number of threads is replaced as a whole, so that a line of the page is always
    from one run: its engines had their turns within the same seconds.
    """
    if not earlier or earlier["machine"] != measured["machine"]:
        return measured
    again = {(r["workload"], r["threads"]) for r in measured["rows"] + measured["reasons"]}
    kept = {part: [r for r in earlier[part] if (r["workload"], r["threads"]) not in again] for part in ("rows", "reasons")}
    # A row that does not say when it was measured is from before runs were merged.
    rows = [r for r in kept["rows"] if "run" in r] + measured["rows"]
    engines = {r["engine"] for r in rows}
    measured_peaks = {m["workload"] for m in measured["memory"]}
    return {
        **measured,
        "rows": rows,
        "reasons": kept["reasons"] + measured["reasons"],
        "memory": [m for m in earlier["memory"] if m.get("workload") not in measured_peaks and "workload" in m] + measured["memory"],
        "versions": {**earlier["versions"], **measured["versions"]},
        # An engine that an earlier run measured was not left out.
        "skipped": {n: why for n, why in {**earlier["skipped"], **measured["skipped"]}.items() if n not in engines},
        "minutes": earlier["minutes"] + measured["minutes"],
    }
