//! Ottava behind the benchmark's line protocol.

mod gemm;
mod inference;
mod networks;
mod training;

use anyhow::{Context, Result};
use ottava_peers::{Kind, serve};

fn main() -> Result<()> {
    let threads = std::env::args().nth(2).context("usage: ottava-engine MODELS THREADS")?;
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    serve(|files, _| match files.kind {
        Kind::Gemm => gemm::load(files),
        Kind::Training => training::load(files),
        Kind::Network => inference::load(files),
    })
}
