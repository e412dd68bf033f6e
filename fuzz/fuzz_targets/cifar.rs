//! CIFAR's binary batches: an error, or images whose labels are classes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::data::{Cifar, Dataset, Split, read_cifar};

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a folder for the batch");
    for (cifar, name) in [(Cifar::Ten, "test_batch.bin"), (Cifar::Hundred, "test.bin")] {
        std::fs::write(dir.path().join(name), bytes).expect("room for the batch");
        if let Ok(set) = read_cifar(dir.path(), cifar, Split::Test) {
            assert!(set.labels().iter().all(|&label| usize::from(label) < set.classes().len()));
        }
    }
});
