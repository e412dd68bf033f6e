//! The same seed gives the same weights, bit for bit, at any number of threads.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::process::Command;

use ottava_nn::models::{ModelConfig, build};
use ottava_nn::optim::{self, OptimizerConfig, OptimizerKind};
use ottava_nn::{Network as _, Schedule, ScheduleKind, TrainConfig, Trainer, init};

const NAME: &str = "weights_do_not_depend_on_the_number_of_threads";
const CHILD: &str = "OTTAVA_TEST_PRINTS_DIGEST";

/// The number of threads is a process's: the test starts itself with one, two and three of them.
#[test]
fn weights_do_not_depend_on_the_number_of_threads() {
    if std::env::var_os(CHILD).is_some() {
        println!("digest {:016x}", trained_digest());
        return;
    }
    let digests = ["1", "2", "3"].map(|threads| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let start = output.find("digest ").unwrap_or_else(|| panic!("{threads}: {output}"));
        output[start..].lines().next().unwrap().to_owned()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

/// A hash (FNV-1a) of every bit of a network after three steps.
fn trained_digest() -> u64 {
    let model = build("resnet20", &ModelConfig::default()).unwrap();
    let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 1e-2);
    let optimizer = optimizer.build(model.parameters(), optim::matrices).unwrap();
    let schedule = Schedule::new(ScheduleKind::Cosine, 1e-2, 1, 3);
    let config = TrainConfig { clip_norm: Some(1.0), label_smoothing: 0.1, ..TrainConfig::new(1) };
    let batches = (0..3).map(|i| {
        let images = init::normal(&[10, 3, 32, 32], 1.0, &mut init::rng(i));
        Ok::<_, Infallible>((images, (0..10).collect()))
    });
    let batches: Vec<_> = batches.collect();
    Trainer::new(&*model, optimizer, schedule, config)
        .run(|_| batches.clone(), |_, _| ControlFlow::Continue(()))
        .unwrap();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (_, value) in model.state_dict() {
        for byte in value.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
