use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::Files;

/// A workload, loaded.
pub trait Model {
    /// How it was configured, for the report.
    fn setting(&self) -> String;

    /// What is timed.
    fn run(&mut self) -> Result<()>;

    /// The outputs of all check inputs, one after the other.
    fn outputs(&mut self) -> Result<Vec<f32>>;
}

/// Answers commands until there are no more. `load` says why if it cannot do a workload.
pub fn serve(load: impl Fn(&Files, usize) -> Result<Box<dyn Model>>) -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(models), Some(threads)) = (arguments.next(), arguments.next()) else {
        bail!("usage: ENGINE MODELS THREADS");
    };
    let (models, threads) = (PathBuf::from(models), threads.parse()?);
    let mut model: Option<Box<dyn Model>> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        if command == "quit" {
            break;
        }
        let reply = match command {
            "load" => {
                drop(model.take());
                Files::new(&models, argument).and_then(|files| load(&files, threads)).map(|made| {
                    let setting = made.setting();
                    model = Some(made);
                    json!({ "setting": setting })
                })
            }
            "run" => time(&mut model, argument),
            "outputs" => model.as_mut().context("nothing is loaded").and_then(|model| {
                std::fs::write(argument, bytemuck::cast_slice::<f32, u8>(&model.outputs()?))?;
                Ok(json!({"ok": true}))
            }),
            "rss" => peak().map(|peak| json!({ "peak": peak })),
            _ => Err(anyhow::anyhow!("unknown command `{command}`")),
        };
        let reply = reply.unwrap_or_else(|error| json!({"skip": format!("{error:#}")}));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{reply}")?;
        out.flush()?;
    }
    Ok(())
}

fn time(model: &mut Option<Box<dyn Model>>, count: &str) -> Result<Value> {
    let model = model.as_mut().context("nothing is loaded")?;
    let count: usize = count.parse()?;
    let mut times = Vec::with_capacity(count);
    let cpu = cpu_time();
    for _ in 0..count {
        let start = Instant::now();
        model.run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(json!({"ms": times, "cpu": (cpu_time() - cpu).as_secs_f64() * 1e3}))
}

/// CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The most memory this process has had resident, in bytes.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("VmHWM without a number")?.parse::<u64>()? * 1024)
}
