//! The `ottava` command: see `docs/cli.md`.
#![forbid(unsafe_code)]

mod analyze;
mod args;
mod bench;
mod classifier;
mod config;
mod demo;
mod eval;
mod export;
mod helpers;
mod inspect;
mod memory;
mod model;
mod output;
mod predict;
mod profile;
mod ptq;
mod qat;
mod report;
mod run_dir;
mod scheme;
mod setup;
mod task;
mod train;
mod verify;
mod widths;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use args::{Cli, Command};

fn main() -> ExitCode {
    let args = match config::expand(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(error) => return fail(&error),
    };
    // Usage errors, --help and --version end here, with clap's own exit codes: 2 and 0.
    let cli = Cli::parse_from(args);
    let result = setup::prepare(cli.command.global()).and_then(|()| run(&cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<setup::Exit>() {
            Some(setup::Exit::Interrupted(_)) => {
                tell(&error.to_string());
                ExitCode::from(130)
            }
            Some(setup::Exit::Usage(_)) => {
                fail(&error);
                ExitCode::from(2)
            }
            None => fail(&error),
        },
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Train(args) => train::run(args),
        Command::Qat(args) => qat::run(args),
        Command::Ptq(args) => ptq::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Export(args) => export::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Analyze(args) => analyze::run(args),
        Command::Report(args) => report::run(args),
    }
}

/// One line: what, where, what to do.
fn fail(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    tell(&format!("error: {line}"));
    ExitCode::FAILURE
}

/// A line on standard error. Nobody may be listening; the exit code says it still.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
