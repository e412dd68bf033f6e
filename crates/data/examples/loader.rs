//! How many images a second a loader makes, alone.
//!
//!     cargo run --release -p ottava-data --example loader -- folder:DIR [WORKERS [EPOCHS]]
//!
//! Prints one line an epoch, and names the pictures that were left out.

use std::error::Error;
use std::time::Instant;

use ottava_data::{Augment, DataSpec, Loader, LoaderOptions, OnBadImage, Split};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let spec: DataSpec = args.next().ok_or("name a data set, such as folder:DIR")?.parse()?;
    let workers = args.next().map_or(Ok(2), |n| n.parse())?;
    let epochs: u64 = args.next().map_or(Ok(1), |n| n.parse())?;
    let data = spec.load(Split::Train)?;
    let preprocess = spec.preprocess();
    let options = LoaderOptions {
        batch: 32,
        shuffle: true,
        workers,
        augment: Augment::suited_to(&*data, &preprocess)?,
        on_bad_image: OnBadImage::Skip,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(data, preprocess, options)?;
    for epoch in 0..epochs {
        let (start, mut images) = (Instant::now(), 0);
        for batch in loader.epoch(epoch) {
            images += batch?.labels.len();
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{images} images in {seconds:.2} s: {:.0} a second", images as f64 / seconds);
    }
    for reason in loader.skipped().values() {
        println!("left out: {reason}");
    }
    Ok(())
}
