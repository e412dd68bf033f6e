//! What people and scripts read: progress on standard error, results on standard output.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::args::Global;

/// A bar over `len` steps on standard error; invisible with `--quiet` or where it is no terminal.
pub fn bar(global: &Global, what: &str, len: usize) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    if global.quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{prefix:>16} {bar:30} {pos}/{len} {elapsed} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A line on standard error, unless `--quiet`.
pub fn note(global: &Global, line: impl AsRef<str>) {
    if !global.quiet {
        // Nobody may be listening; that is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
    }
}

/// The result: one JSON object with `--json`, the text otherwise.
pub fn result(global: &Global, json: Value, text: &str) -> Result<()> {
    let line = if global.json { serde_json::to_string(&json)? } else { text.trim_end().to_owned() };
    match writeln!(std::io::stdout(), "{line}") {
        // Whoever read has read enough: `ottava inspect … | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the result"),
    }
}

/// Refuses a file that cannot be written, before the work that it is to hold.
pub fn can_write(file: &Path) -> Result<()> {
    let shown = file.display();
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if file.is_dir() {
        bail!("cannot write {shown}: it is a directory");
    }
    match directory.metadata() {
        Ok(found) if !found.is_dir() => {
            bail!("cannot write {shown}: {} is no directory", directory.display())
        }
        Ok(found) if found.permissions().readonly() => {
            bail!("cannot write {shown}: {} is read-only", directory.display())
        }
        Ok(_) => Ok(()),
        Err(error) => bail!("cannot write {shown}: {}: {error}", directory.display()),
    }
}

/// Rows under a header, columns aligned: the first to the left, the others to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(&widths).enumerate().map(|(i, (cell, &width))| {
            if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// Rounded to so many decimals, so that figures in JSON read as they are meant.
pub fn round(x: f64, decimals: i32) -> f64 {
    let unit = 10f64.powi(decimals);
    (x * unit).round() / unit
}
