//! `ottava report`: a page of a run's curves, histograms and layers that needs no other file.

mod charts;
mod logs;
mod page;
mod weights;

use std::path::Path;

use anyhow::{Result, bail};
use ottava::quant::write_atomic;
use serde_json::{Value, json};

use crate::args;
use crate::output::{bytes, result};
use crate::run_dir::spared;

/// `ottava report`.
pub fn run(args: &args::Report) -> Result<()> {
    if !args.run.is_dir() {
        bail!("{} is no run directory; name one that train, qat or demo wrote", args.run.display());
    }
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    spared("--out", &out, &args.run, Some("report.html"))?;
    let written = write(&args.run, &out)?;
    let json = json!({"file": out.display().to_string(), "bytes": written});
    result(&args.global, json, &format!("{}, {}", out.display(), bytes(written)))
}

/// Keeps the result of a run and writes its page.
pub fn finish(run: &Path, json: &Value) -> Result<()> {
    write_atomic(run.join("result.json"), serde_json::to_string(json)?.as_bytes())?;
    write(run, &run.join("report.html"))?;
    Ok(())
}

/// Writes the page of a run.
fn write(run: &Path, out: &Path) -> Result<u64> {
    let page = page::page(&logs::Logs::read(run)?, &weights::histograms(run)?)?;
    write_atomic(out, page.as_bytes())?;
    Ok(page.len() as u64)
}
