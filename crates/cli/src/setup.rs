//! What every command does before its work: threads, the instruction set, Ctrl-C.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use ottava::tensor::Level;

use crate::args::Global;

static STOP: AtomicBool = AtomicBool::new(false);

/// Why a command ends that did not fail at its job.
#[derive(Debug)]
pub enum Exit {
    /// A flag has a value that no job can have.
    Usage(String),
    /// The user asked to stop.
    Interrupted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(reason) | Self::Interrupted(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for Exit {}

/// `bail!` for wrong usage.
macro_rules! usage {
    ($($text:tt)*) => {
        return Err($crate::setup::Exit::Usage(format!($($text)*)).into())
    };
}
pub(crate) use usage;

/// The value that a flag says; wrong usage if it says none.
pub fn parsed<T>(text: &str) -> Result<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| Exit::Usage(error.to_string()).into())
}

/// Checks the environment and makes the thread pool.
pub fn prepare(global: &Global) -> Result<()> {
    Level::from_env().context("the environment variable OTTAVA_ISA")?;
    if let Some(threads) = global.threads.filter(|threads| !(1..=1024).contains(threads)) {
        usage!("--threads {threads}: use 1 to 1024 threads");
    }
    // Without the flag too: started at their first use, threads that cannot be had would be a panic.
    rayon::ThreadPoolBuilder::new()
        .num_threads(global.threads.unwrap_or(0))
        // As much as the main thread has, in whose place one of them runs the command.
        .stack_size(8 << 20)
        .build_global()
        .context("cannot start the threads; --threads N asks for fewer")
}

/// From now on Ctrl-C asks a training to stop at its next step, after writing a checkpoint; a second
/// one ends the process at once.
pub fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("cannot catch Ctrl-C")
}

/// Ends what has no checkpoint of its own, if the user asked to stop.
pub fn check_interrupt(when: &str) -> Result<()> {
    match interrupted() {
        true => Err(Exit::Interrupted(format!("interrupted {when}")).into()),
        false => Ok(()),
    }
}

/// Whether the user asked to stop.
pub fn interrupted() -> bool {
    STOP.load(Ordering::SeqCst)
}
