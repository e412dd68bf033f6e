//! Programs against a naive evaluation, element by element, and against themselves: any level, any
//! batch, any number of threads, fused or not, saved and loaded.

mod networks;
mod oracle;

use networks::{Dice, random, resnet};
use oracle::{Naive, evaluate};
use ottava_quant::{
    Activation, Engine, Error, FloatOp, Instr, Options, Program, QParams, QuantizedLayer, Threads,
    Tuning, Workspace,
};
use ottava_tensor::conv::ConvAttrs;
use ottava_tensor::conv::int8::Algorithm;
use ottava_tensor::{Level, Tensor};
use proptest::prelude::*;

fn engine(program: &Program, level: Level, fuse: bool) -> Engine {
    Engine::with_options(program, Options { level, fuse, ..Options::default() }).unwrap()
}

fn images(program: &Program, batch: usize, seed: u64) -> Tensor<f32> {
    Dice(seed | 1).floats(&[&[batch], program.input_shape()].concat())
}

fn run(program: &Program, x: &Tensor<f32>) -> Tensor<f32> {
    Engine::new(program).unwrap().run(x, &mut Workspace::new()).unwrap()
}

/// Codes are equal; floats are sums in another order.
fn assert_equals(value: &Naive, expected: &Naive, what: &str) {
    assert_eq!(
        (value.shape, &value.codes, value.grid),
        (expected.shape, &expected.codes, expected.grid),
        "{what}"
    );
    assert_eq!(value.floats.len(), expected.floats.len(), "{what}");
    let most =
        expected.floats.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(1.0, f32::max);
    for (x, y) in value.floats.iter().zip(&expected.floats) {
        // What has left the floats' range did so here and there.
        let wild = |x: f32| x.is_nan() || x.abs() > 1e25;
        assert!((x - y).abs() <= 1e-4 * most || wild(*x) && wild(*y), "{x} and {y}: {what}");
    }
}

/// Every value of an unfused run is what the definition makes of those before it; the results of all
/// engines are equal.
fn check(program: &Program, x: &Tensor<f32>, levels: &[Level]) {
    let mut results = vec![];
    let mut workspace = Workspace::new();
    for &level in levels {
        let mut values = vec![Naive::from(x)];
        let traced = engine(program, level, false)
            .run_traced(x, &mut workspace, |node, value| {
                assert_eq!(node + 1, values.len());
                values.push(value.into());
            })
            .unwrap();
        for (node, value) in program.nodes().iter().zip(&values[1..]) {
            let inputs: Vec<&Naive> = node
                .inputs
                .iter()
                .map(|id| &values[id.node().map_or(0, |node| node + 1)])
                .collect();
            assert_equals(value, &evaluate(&node.instr, &inputs), &format!("{level:?}: {node:?}"));
        }
        let last = &values[program.output().node().unwrap() + 1];
        let expected = match last.grid {
            Some(grid) => last.codes.iter().map(|&q| grid.dequantize(q as i32)).collect(),
            None => last.floats.clone(),
        };
        assert!(same(&traced.to_vec(), &expected));
        let fused = engine(program, level, true);
        let result = fused.run(x, &mut workspace).unwrap();
        assert!(same(&result.to_vec(), &expected), "{level:?} fused");
        fused
            .run_traced(x, &mut workspace, |node, value| {
                let (ours, theirs) = (Naive::from(value), &values[node + 1]);
                assert!(ours.codes == theirs.codes && same(&ours.floats, &theirs.floats), "fused");
            })
            .unwrap();
        results.push(expected);
    }
    assert!(results.windows(2).all(|pair| same(&pair[0], &pair[1])), "levels differ");
}

/// Equal, a NaN being equal to a NaN.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan())
}

/// Whether the range of a batch shapes each image's result.
fn joins_images(program: &Program) -> bool {
    let joins = |instr: &Instr| matches!(instr, Instr::Float(FloatOp::DynamicLinear { .. }));
    program.nodes().iter().any(|node| joins(&node.instr))
}

/// Tuning changes how a program is computed, not what; a choice made elsewhere is not followed.
#[test]
fn a_tuned_program_computes_the_same() {
    let mut program = random(5, 12);
    let (x, options) = (images(&program, 2, 5), Options::default());
    let expected = run(&program, &x);
    let tuning = Tuning::measure(&program, &options, 2).unwrap();
    tuning.store(&mut program);
    assert_eq!(Tuning::of(&program, &options).as_ref(), Some(&tuning));
    assert_eq!(run(&program, &x), expected);
    let engine = Engine::new(&program).unwrap();
    for (index, node) in program.nodes().iter().enumerate() {
        assert_eq!(engine.algorithm(index), tuning.algorithm(&node.name), "{}", node.name);
    }
    // What no memory holds is measured in the parts that it runs in, or refused.
    let endless = Tuning::measure(&program, &options, usize::MAX);
    assert!(matches!(endless, Ok(_) | Err(Error::Batch { .. })), "{endless:?}");
    let elsewhere = program.metadata()["tuning"].replacen('(', "of another kind (", 1);
    program.metadata_mut().insert("tuning".into(), elsewhere);
    assert_eq!(Tuning::of(&program, &options), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_instruction_equals_its_definition(seed: u64, nodes in 1usize..14, batch in 1usize..4) {
        let program = random(seed, nodes);
        check(&program, &images(&program, batch, seed), &Level::available());
    }

    #[test]
    fn a_saved_program_is_the_same_program(seed: u64, nodes in 1usize..14) {
        let program = random(seed, nodes);
        let bytes = program.to_container().unwrap().to_bytes();
        let container = ottava_quant::Container::read(bytes.clone()).unwrap();
        let loaded = Program::from_container(&container).unwrap();
        prop_assert_eq!(&loaded, &program);
        prop_assert_eq!(loaded.to_container().unwrap().to_bytes(), bytes);
        let x = images(&program, 2, seed);
        prop_assert!(same(&run(&loaded, &x).to_vec(), &run(&program, &x).to_vec()));
    }

    #[test]
    fn a_batch_is_its_images_one_by_one(seed: u64, nodes in 1usize..14, batch in 1usize..5) {
        let program = random(seed, nodes);
        prop_assume!(!joins_images(&program));
        let engine = Engine::new(&program).unwrap();
        let mut workspace = Workspace::new();
        let x = images(&program, batch, seed);
        let whole = engine.run(&x, &mut workspace).unwrap();
        for i in 0..batch {
            let image = x.slice(0, i..i + 1, 1).unwrap();
            let alone = engine.run(&image, &mut workspace).unwrap();
            let expected = whole.slice(0, i..i + 1, 1).unwrap().to_vec();
            prop_assert!(same(&alone.to_vec(), &expected));
        }
    }

    #[test]
    fn the_layout_of_the_input_does_not_matter(seed: u64) {
        let program = random(seed, 4);
        let x = images(&program, 2, seed);
        let y = run(&program, &x);
        prop_assert!(same(&run(&program, &x.channels_last()).to_vec(), &y.to_vec()));
        let gaps = x.broadcast_to(&[&[3], x.shape()].concat()).unwrap();
        let gaps = gaps.slice(0, 1..2, 1).unwrap().reshape(x.shape()).unwrap();
        prop_assert!(same(&run(&program, &gaps).to_vec(), &y.to_vec()));
        let last = x.rank() - 1;
        let turned = x.transpose(0, last).unwrap().contiguous().transpose(0, last).unwrap();
        prop_assert!(same(&run(&program, &turned).to_vec(), &y.to_vec()));
    }
}

#[test]
fn a_resnet_is_exact_on_every_level() {
    let program = resnet(1, 8, 12);
    check(&program, &images(&program, 2, 3), &Level::available());
}

/// Convolutions in floats take the addition and the ReLU behind them along, on either side of the sum, but
/// not what somebody else reads, or what is stretched.
#[test]
fn float_blocks_are_the_same_in_one_step() {
    let mut dice = Dice(5);
    for own in [true, false] {
        let mut b = Program::builder(&[6, 9, 9]).unwrap();
        let mut conv = |b: &mut ottava_quant::Builder, name: &str, x, kernel: usize| {
            let weight = dice.floats(&[6, 6, kernel, kernel]).map(|w| w * 0.2);
            let (bias, attrs) = (Some(dice.floats(&[6])), ConvAttrs::new(1, kernel / 2));
            b.push(name, Instr::Float(FloatOp::Conv { weight, bias, attrs }), &[x]).unwrap()
        };
        let relu = || Instr::Clip(Activation::RELU);
        let sum = || Instr::Float(FloatOp::Add(None));
        let input = b.input();
        let first = conv(&mut b, "first", input, 3);
        let x = b.push("first.relu", relu(), &[first]).unwrap();
        let y = conv(&mut b, "second", x, 3);
        let y = b.push("sum", sum(), &[x, y]).unwrap();
        let y = b.push("sum.relu", relu(), &[y]).unwrap();
        let z = conv(&mut b, "third", y, 1);
        let shortcut = if own { y } else { z };
        let z = b.push("twice", sum(), &[z, shortcut]).unwrap();
        let mean = FloatOp::AvgPool { window: None, count_padding: false };
        let mean = b.push("mean", Instr::Float(mean), &[z]).unwrap();
        let stretched = conv(&mut b, "stretched", mean, 1);
        let z = b.push("beside", sum(), &[z, stretched]).unwrap();
        let z = b.push("end", relu(), &[z]).unwrap();
        let program = b.finish(z).unwrap();
        for batch in [1, 3] {
            check(&program, &images(&program, batch, 7), &[Level::current()]);
        }
        let mut steps = vec![];
        let see = |node: usize, _: &_| steps.push(program.nodes()[node].name.as_str());
        Engine::new(&program)
            .unwrap()
            .run_traced(&images(&program, 1, 7), &mut Workspace::new(), see)
            .unwrap();
        let third: &[&str] = if own { &["twice"] } else { &["third", "twice"] };
        let behind = ["mean", "stretched", "beside", "end"];
        assert_eq!(steps, [&["first.relu", "sum.relu"], third, &behind].concat());
    }
}

#[test]
fn every_algorithm_gives_the_same_codes() {
    let program = resnet(1, 32, 16);
    let x = images(&program, 1, 4);
    check(&program, &x, &[Level::current()]);
    let expected = run(&program, &x);
    for (level, algorithm) in
        Level::available().into_iter().flat_map(|level| Algorithm::ALL.map(|a| (level, a)))
    {
        let options = Options { level, algorithm, ..Options::default() };
        let engine = Engine::with_options(&program, options).unwrap();
        let y = engine.run(&x, &mut Workspace::new()).unwrap();
        assert_eq!(y, expected, "{level:?} {algorithm:?}");
    }
}

#[test]
fn an_engine_is_shared_by_threads() {
    let program = resnet(1, 8, 16);
    let engine = Engine::new(&program).unwrap();
    let x = images(&program, 3, 6);
    let expected = run(&program, &x);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut workspace = Workspace::new();
                for _ in 0..4 {
                    assert_eq!(engine.run(&x, &mut workspace).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn threads_change_nothing() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let program = resnet(1, 16, 32);
    let x = images(&program, 5, 7);
    let [one, two] = [1, 2].map(|threads| pool(threads).install(|| run(&program, &x)));
    assert_eq!(one, two);
    for threads in [Threads::Current, Threads::One, Threads::Pool(pool(3).into())] {
        let engine = threads.run(|| Engine::new(&program)).unwrap().on(threads);
        assert_eq!(engine.run(&x, &mut Workspace::new()).unwrap(), one);
    }
    assert!(one.iter().any(|y| y != one.at(&[0, 0])), "a network that says always the same");
}

#[test]
fn a_batch_that_runs_in_parts_is_the_batch_in_one() {
    let program = resnet(1, 16, 64);
    let engine = Engine::new(&program).unwrap();
    // A batch of a part and some images more.
    let bytes = |batch| engine.workspace_bytes(batch).unwrap();
    let part = (1..).find(|&batch| bytes(batch) == bytes(100_000)).unwrap();
    let x = images(&program, part + 3, 9);
    let mut workspace = Workspace::new();
    let parts = engine.run(&x, &mut workspace).unwrap();
    assert!(engine.algorithm(0).is_none() && engine.algorithm(1).is_some());
    assert!(engine.packed_bytes() > 0);
    // Tracing shows whole values, so it runs the batch in one.
    assert_eq!(engine.run_traced(&x, &mut workspace, |_, _| {}).unwrap(), parts);
    assert_eq!(engine.run(&x.channels_last(), &mut workspace).unwrap(), parts);
    let reversed = x.transpose(2, 3).unwrap().contiguous().transpose(2, 3).unwrap();
    assert_eq!(engine.run(&reversed, &mut workspace).unwrap(), parts);
}

#[test]
fn workspaces_serve_any_engine_and_batch() {
    let mut workspace = Workspace::new();
    let programs: Vec<Program> = (0..6).map(|seed| random(seed * 977 + 5, 9)).collect();
    for round in 0..3 {
        for program in &programs {
            let x = images(program, 1 + round * 2 % 3, 11);
            let again = Engine::new(program).unwrap().run(&x, &mut workspace).unwrap();
            assert!(same(&again.to_vec(), &run(program, &x).to_vec()));
        }
    }
}

#[test]
fn a_wrong_input_is_refused_and_an_empty_batch_is_not() {
    let program = resnet(1, 4, 8);
    let engine = Engine::new(&program).unwrap();
    let mut workspace = Workspace::new();
    for shape in [&[1, 3, 8, 9][..], &[3, 8, 8], &[], &[1, 1, 3, 8, 8]] {
        let error = engine.run(&Tensor::zeros(shape), &mut workspace).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        assert!(error.to_string().contains("[3, 8, 8]"), "{error}");
    }
    let none = engine.run(&Tensor::zeros(&[0, 3, 8, 8]), &mut workspace).unwrap();
    assert_eq!(none.shape(), [0, 10]);
    let mut short = [0.0; 9];
    let one = Tensor::zeros(&[1, 3, 8, 8]);
    assert!(engine.run_into(&one, &mut short, &mut workspace).is_err());
    // A batch of one image repeated beyond all memory.
    let endless = one.broadcast_to(&[1 << 50, 3, 8, 8]).unwrap();
    let error = engine.run(&endless, &mut workspace).unwrap_err();
    assert_eq!(error, Error::Batch { batch: 1 << 50 });
}

#[test]
fn values_that_are_no_numbers_are_ordinary_input() {
    let program = resnet(1, 4, 8);
    let mut x = images(&program, 1, 5);
    x.data_mut()[0] = f32::NAN;
    x.data_mut()[1] = f32::INFINITY;
    x.data_mut()[2] = f32::NEG_INFINITY;
    x.data_mut()[3] = f32::MAX;
    check(&program, &x, &[Level::current()]);
}

/// Packed for products, one-channel groups would take up to a thousand times their weights.
#[test]
fn the_plan_that_is_small_keeps_depthwise_kernels() {
    let shape = [32, 1, 3, 3];
    let codes = Vec::from_iter((0..32 * 9).map(|i| (i % 200) as i8 / 2));
    let layer = QuantizedLayer {
        codes: Tensor::new(&shape, codes).unwrap(),
        scales: vec![0.01; 32],
        bias: vec![5; 32],
    };
    let grid = QParams::new(0.05, 100, 0..=255).unwrap();
    let mut b = Program::builder(&[32, 6, 6]).unwrap();
    let x = b.push("quantize", Instr::Quantize(grid), &[b.input()]).unwrap();
    let attrs = ConvAttrs { groups: 32, ..ConvAttrs::new(1, 1) };
    let conv = Instr::Conv { layer, attrs, output: grid, activation: Activation::NONE };
    let y = b.push("depthwise", conv, &[x]).unwrap();
    let program = b.finish(y).unwrap();
    let small = Engine::with_options(&program, Options::small()).unwrap();
    assert_eq!(small.algorithm(1), Some(Algorithm::Depthwise));
    assert!(small.packed_bytes() <= 8 * 32 * 9, "{}", small.packed_bytes());
}
