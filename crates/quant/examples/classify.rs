//! The whole of a product that embeds an integer network: load a file, run it, print the class.
//!
//! ```text
//! cargo run --release -p ottava-quant --example classify -- model.ottava [small]
//! ```
//!
//! The image is a synthetic one of the network's own size; a product has its pixels already.

use std::error::Error;
use std::time::Instant;

use ottava_quant::{Engine, Options, Program, Workspace};
use ottava_tensor::Tensor;

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: classify MODEL.ottava [small]")?;
    let options =
        if args.next().as_deref() == Some("small") { Options::small() } else { Options::fast() };

    // The engine holds the weights in its own order; the program is not needed beyond that.
    let engine = Engine::with_options(&Program::load(path)?, options)?;
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
