//! Our own files: an error, or a program that is saved and read as itself, and runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::quant::{Container, Engine, Options, Program, Workspace};
use ottava::tensor::Tensor;

/// Larger programs take too long for a fuzzer.
const MAX_BYTES: usize = 1 << 22;
const MAX_MACS: u64 = 1 << 24;

fuzz_target!(|bytes: &[u8]| {
    let Ok(container) = Container::read(bytes.to_vec()) else { return };
    let Ok(program) = Program::from_container(&container) else { return };
    let again = program.to_container().expect("it came from one").to_bytes();
    let again = Program::from_container(&Container::read(again).expect("just written"));
    assert_eq!(again.expect("just written"), program);

    let shape: Vec<usize> =
        std::iter::once(1).chain(program.input_shape().iter().copied()).collect();
    if shape.iter().product::<usize>() > MAX_BYTES || program.summary().macs > MAX_MACS {
        return;
    }
    let image = Tensor::full(&shape, 0.5);
    let results = [Options::fast(), Options::small()].map(|plan| {
        let engine = Engine::with_options(&program, plan).ok()?;
        let fits = engine.workspace_bytes(1).is_ok_and(|bytes| bytes <= MAX_BYTES);
        fits.then(|| engine.run(&image, &mut Workspace::new()).expect("a checked program runs"))
    });
    if let [Some(fast), Some(small)] = results {
        let bits = |x: Tensor<f32>| Vec::from_iter(x.iter().map(f32::to_bits));
        assert_eq!(bits(fast), bits(small), "the plans differ");
    }
});
