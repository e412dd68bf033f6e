//! `--profile`: where the time of the first steps went, for people and for a trace viewer.

use std::path::Path;

use anyhow::Result;
use ottava::nn::Profile;
use ottava::quant::write_atomic;
use serde_json::{Value, json};

use crate::output::{round, table};

/// Steps that are measured; the first, which warms up, is among them.
pub const STEPS: usize = 20;

/// A row for each operator and phase, the largest first.
pub fn text(profile: &Profile) -> String {
    let (steps, totals) = (profile.steps().max(1) as f64, profile.totals());
    let whole: f64 = totals.iter().map(|total| total.duration.as_secs_f64()).sum();
    let row = |total: &ottava::nn::Total| {
        let seconds = total.duration.as_secs_f64();
        vec![
            format!("{} {}", total.name, total.phase),
            format!("{:.1}", total.calls as f64 / steps),
            format!("{:.3}", seconds * 1e3 / steps),
            format!("{:.1}", 100.0 * seconds / whole.max(f64::MIN_POSITIVE)),
        ]
    };
    let rows: Vec<Vec<String>> = totals.iter().map(row).collect();
    let text = table(&["operator", "calls/step", "ms/step", "%"], &rows);
    format!("{text}{} steps, {:.1} ms each\n", profile.steps(), whole * 1e3 / steps)
}

/// The same for scripts.
pub fn json(profile: &Profile) -> Value {
    let steps = profile.steps().max(1) as f64;
    let row = |total: &ottava::nn::Total| {
        json!({
            "op": total.name,
            "phase": total.phase,
            "calls": total.calls,
            "ms_per_step": round(total.duration.as_secs_f64() * 1e3 / steps, 4),
        })
    };
    json!({"steps": profile.steps(), "operators": profile.totals().iter().map(row).collect::<Vec<_>>()})
}

/// Writes a file for `chrome://tracing` and Perfetto (Trace Event Format, complete events).
pub fn write_trace(profile: &Profile, path: &Path) -> Result<()> {
    let micros = |time: std::time::Duration| time.as_nanos() as f64 / 1e3;
    let event = |entry: &ottava::nn::Entry| {
        json!({
            "name": entry.name, "cat": entry.phase, "ph": "X", "pid": 1, "tid": 1,
            "ts": micros(entry.start), "dur": micros(entry.duration),
            "args": {"shape": entry.shape, "phase": entry.phase},
        })
    };
    let events: Vec<Value> = profile.entries().iter().map(event).collect();
    let text = serde_json::to_string(&json!({"traceEvents": events, "displayTimeUnit": "ms"}))?;
    Ok(write_atomic(path, text.as_bytes())?)
}
