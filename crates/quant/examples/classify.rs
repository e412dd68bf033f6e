//! The whole of a product that embeds an integer network: load a file, run it, print the class.
//!
//! ```text
//! cargo run --release -p ottava-quant --example classify -- model.ottava [small]
//! ```
//!
//! The file is mapped, not read: the weights are packed straight from the system's page cache. The image
//! is a synthetic one of the network's own size; a product has its pixels already.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use memmap2::Mmap;
use ottava_quant::{Container, Engine, Options, Program, Workspace};
use ottava_tensor::Tensor;

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: classify MODEL.ottava [small]")?;
    let options =
        if args.next().as_deref() == Some("small") { Options::small() } else { Options::fast() };

    // The engine holds the weights in its own order; the program is not needed beyond that.
    let file = File::open(path)?;
    // SAFETY: nobody changes a model file in place: Ottava writes a new one and renames it.
    let bytes = unsafe { Mmap::map(&file)? };
    let program = Program::from_container(&Container::read(bytes)?)?;
    let engine = Engine::with_options(&program, options)?;
    drop(program);
    let mut workspace = Workspace::new();
    let shape: Vec<usize> = [1].into_iter().chain(engine.input_shape().iter().copied()).collect();
    let pixels: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| (i % 251) as f32 / 125.0 - 1.0).collect();
    let ready = start.elapsed();

    let logits = engine.run(&Tensor::new(&shape, pixels)?, &mut workspace)?;
    let class = logits.argmax_rows()?[0];
    let answered = start.elapsed();
    println!("class {class} on {}", engine.level().name());
    println!("ready after {ready:.1?}, answered after {answered:.1?}");
    println!(
        "packed weights {} bytes, working memory {} bytes",
        engine.packed_bytes(),
        engine.workspace_bytes(1)?
    );
    Ok(())
}
