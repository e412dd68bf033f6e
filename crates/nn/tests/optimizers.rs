//! Optimizers against what PyTorch's answer: the first two elements of a parameter, six steps.

use ottava_autograd::{Gradients, Leaf, Mode, Tape};
use ottava_nn::Error;
use ottava_nn::optim::{self, Optimizer, OptimizerConfig, OptimizerKind};
use ottava_tensor::Tensor;

/// `∂ Σ w·g / ∂w = g`.
fn gradient(leaf: &Leaf, value: &Tensor<f32>) -> Gradients {
    let tape = Tape::new(Mode::TRAIN);
    let product = tape.leaf(leaf).mul(tape.input(value.clone())).unwrap();
    product.sum().unwrap().backward().unwrap()
}

fn named(leaf: &Leaf) -> Vec<(String, Leaf)> {
    vec![("p".into(), leaf.clone())]
}

fn check(config: OptimizerConfig, lr: f32, before: [f32; 2], steps: [([f32; 2], [f32; 2]); 6]) {
    let leaf = Leaf::param(Tensor::new(&[2], before).unwrap());
    let mut optimizer = config.build(named(&leaf), optim::all).unwrap();
    for (step, (grad, expected)) in steps.into_iter().enumerate() {
        let grad = Tensor::new(&[2], grad).unwrap();
        optimizer.step(&gradient(&leaf, &grad), lr).unwrap();
        // A step rounds a handful of f32 operations on numbers of about one.
        for (ours, theirs) in leaf.get().iter().zip(expected) {
            assert!((ours - theirs).abs() < 5e-7, "step {step}: {ours} instead of {theirs}");
        }
    }
}

#[test]
fn sgd_with_momentum_and_weight_decay() {
    check(
        OptimizerConfig::new(OptimizerKind::Sgd, 0.0005),
        0.1,
        [0.4259027, -1.6681788],
        [
            ([-0.6080966, -0.6839134], [0.48669106, -1.599704]),
            ([0.397909, 0.2060441], [0.50158536, -1.5586011]),
            ([0.35898924, 1.5879223], [0.47906622, -1.6803229]),
            ([0.012738305, -1.6463569], [0.4575012, -1.6251528]),
            ([-1.4491246, -1.1851786], [0.5829823, -1.4569005]),
            ([1.6783516, -3.0589285], [0.52805096, -0.9995078]),
        ],
    );
}

#[test]
fn sgd_with_nesterov_momentum() {
    check(
        OptimizerConfig { nesterov: true, ..OptimizerConfig::new(OptimizerKind::Sgd, 0.0001) },
        0.05,
        [0.31723422, -0.7545489],
        [
            ([-0.6646756, -0.6907517], [0.3803754, -0.6889203]),
            ([0.30019102, 0.96800745], [0.3787717, -0.75289595]),
            ([0.17954277, 1.2484945], [0.37377852, -0.88551664]),
            ([0.3078397, 0.09661628], [0.3481175, -0.95786655]),
            ([-0.12321873, -0.57590103], [0.3505795, -0.96391803]),
            ([-1.0951525, 0.74107444], [0.45128816, -1.065677]),
        ],
    );
}

#[test]
fn plain_sgd() {
    check(
        OptimizerConfig { momentum: 0.0, ..OptimizerConfig::new(OptimizerKind::Sgd, 0.0) },
        0.1,
        [-0.6324264, -0.82541215],
        [
            ([0.21205787, 1.9053262], [-0.65363216, -1.0159448]),
            ([0.50416476, -0.79058003], [-0.70404863, -0.9368868]),
            ([-0.78349537, -0.75742817], [-0.6256991, -0.861144]),
            ([-1.2194374, -0.7422547], [-0.50375533, -0.7869185]),
            ([0.43416053, -0.5696766], [-0.5471714, -0.72995085]),
            ([1.5187896, 0.5329126], [-0.69905037, -0.7832421]),
        ],
    );
}

#[test]
fn adam_with_weight_decay() {
    check(
        OptimizerConfig::new(OptimizerKind::Adam, 0.01),
        0.001,
        [-0.9639677, -0.9825096],
        [
            ([0.8986435, -0.27072716], [-0.96496767, -0.9815096]),
            ([1.4154207, -0.29153553], [-0.9659547, -0.9805084]),
            ([-1.1958568, 2.1957772], [-0.9661973, -0.98099303]),
            ([-0.6465541, 1.3361062], [-0.9662096, -0.9816317]),
            ([-0.44675657, -0.9444087], [-0.96610665, -0.9819494]),
            ([0.12735234, 1.2883492], [-0.966046, -0.9824175]),
        ],
    );
}

#[test]
fn adamw() {
    check(
        OptimizerConfig::new(OptimizerKind::AdamW, 0.05),
        0.001,
        [-1.172869, 0.15073286],
        [
            ([1.4978771, -0.04184342], [-1.1738104, 0.15172532]),
            ([-0.81270766, -0.96430016], [-1.1739855, 0.15249021]),
            ([0.3128135, 1.0645844], [-1.1742201, 0.15241018]),
            ([1.2599958, 0.74085236], [-1.1746976, 0.15208341]),
            ([-1.0918721, 0.4767492], [-1.1747947, 0.15166265]),
            ([0.97441703, 0.61824006], [-1.1750567, 0.15114078]),
        ],
    );
}

#[test]
fn state_makes_a_fresh_optimizer_go_on_exactly() {
    for kind in OptimizerKind::ALL {
        let config = OptimizerConfig::new(kind, 0.01);
        let values: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let leaf = Leaf::param(Tensor::new(&[200, 200], values).unwrap());
        let mut optimizer = config.build(named(&leaf), optim::all).unwrap();
        let step = |optimizer: &mut Box<dyn Optimizer>, leaf: &Leaf, i: usize| {
            let grad = leaf.get().map(move |w| (w + i as f32).cos());
            optimizer.step(&gradient(leaf, &grad), 0.01).unwrap();
        };
        (0..3).for_each(|i| step(&mut optimizer, &leaf, i));

        let copy = leaf.detach();
        let mut resumed = config.build(named(&copy), optim::all).unwrap();
        resumed.load_state(optimizer.state()).unwrap();
        (3..6).for_each(|i| step(&mut optimizer, &leaf, i));
        (3..6).for_each(|i| step(&mut resumed, &copy, i));
        assert_eq!(leaf.get(), copy.get(), "{kind}");
        assert_eq!(optimizer.state(), resumed.state(), "{kind}");
    }
}

#[test]
fn the_order_of_a_gradient_in_memory_does_not_matter() {
    let ramp = Tensor::new(&[1, 3, 2, 2], Vec::from_iter((0..12).map(|i| i as f32))).unwrap();
    let [a, b] = [ramp.clone(), ramp.channels_last()].map(|gradient_value| {
        let leaf = Leaf::param(ramp.clone());
        let mut optimizer =
            OptimizerConfig::new(OptimizerKind::Adam, 0.1).build(named(&leaf), optim::all).unwrap();
        optimizer.step(&gradient(&leaf, &gradient_value), 0.1).unwrap();
        leaf.get()
    });
    assert_eq!(a, b);
}

#[test]
fn weight_decay_spares_what_the_predicate_spares() {
    let (matrix, bias) =
        (Leaf::param(Tensor::full(&[1, 1], 1.0)), Leaf::param(Tensor::full(&[1], 1.0)));
    let parameters = vec![("w".into(), matrix.clone()), ("b".into(), bias.clone())];
    let config = OptimizerConfig::new(OptimizerKind::Sgd, 0.5);
    let mut optimizer = config.build(parameters, optim::matrices).unwrap();
    let tape = Tape::new(Mode::TRAIN);
    let zero = tape.input(Tensor::full(&[1, 1], 0.0));
    let sum = tape.leaf(&matrix).add(tape.leaf(&bias)).unwrap().mul(zero).unwrap().sum().unwrap();
    optimizer.step(&sum.backward().unwrap(), 0.1).unwrap();
    assert_eq!((matrix.get().to_vec(), bias.get().to_vec()), (vec![0.95], vec![1.0]));
}

#[test]
fn numbers_and_names_out_of_range_are_refused() {
    let config = OptimizerConfig::new(OptimizerKind::Sgd, -1.0);
    let error = config.build(vec![], optim::all).err().unwrap();
    assert!(error.to_string().contains("weight decay is -1"), "{error}");
    let nesterov = OptimizerConfig {
        momentum: 0.0,
        nesterov: true,
        ..OptimizerConfig::new(OptimizerKind::Sgd, 0.0)
    };
    assert!(matches!(nesterov.build(vec![], optim::all), Err(Error::Config { .. })));
    let error = "lamb".parse::<OptimizerKind>().unwrap_err();
    assert_eq!(error.to_string(), "there is no optimizer \"lamb\"; choose one of sgd, adam, adamw");
}

#[test]
fn another_optimizers_state_is_refused_and_changes_nothing() {
    let leaf = Leaf::param(Tensor::full(&[2], 1.0));
    let sgd =
        OptimizerConfig::new(OptimizerKind::Sgd, 0.0).build(named(&leaf), optim::all).unwrap();
    let mut adam =
        OptimizerConfig::new(OptimizerKind::Adam, 0.0).build(named(&leaf), optim::all).unwrap();
    let before = adam.state();
    let error = adam.load_state(sgd.state()).unwrap_err().to_string();
    assert!(error.contains("missing \"p.exp_avg\" [2]; missing \"p.exp_avg_sq\" [2]"), "{error}");
    assert!(error.contains("unexpected \"p.momentum_buffer\" [2]"), "{error}");
    assert_eq!(adam.state(), before);
}
