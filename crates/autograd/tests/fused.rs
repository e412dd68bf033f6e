//! A graph runs BatchNorm, a sum and ReLU as one: the same bits, forward and back.

use ottava_autograd::ops::BatchNorm2d;
use ottava_autograd::{Graph, Leaf, Mode, Saving, Tape, trace};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

fn values(shape: &[usize], seed: usize) -> Tensor<f32> {
    let len = shape.iter().product::<usize>();
    let data: Vec<f32> =
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::new(shape, data).unwrap()
}

/// What a network adds in front of its ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Added {
    Nothing,
    /// The values in front of the BatchNorm, on either side of the sum.
    Right,
    Left,
    /// A value a channel, stretched.
    Column,
    /// Another BatchNorm's values.
    Norm,
}

#[test]
fn batch_norm_sum_and_relu_in_one_pass_change_no_bit() {
    for added in [Added::Nothing, Added::Right, Added::Left, Added::Column, Added::Norm] {
        check(added);
    }
}

fn check(added: Added) {
    let params =
        [values(&[6, 3, 3, 3], 1), values(&[6], 2), values(&[6], 3), values(&[1, 6, 1, 1], 4)];
    let mut leaves: Vec<Leaf> = params.into_iter().map(Leaf::param).collect();
    let statistics = || [Tensor::zeros(&[6]), Tensor::full(&[6], 1.0)].map(Leaf::buffer);
    leaves.extend(statistics());
    leaves.extend(statistics());
    let named: Vec<_> =
        leaves.iter().enumerate().map(|(i, leaf)| (format!("l{i}"), leaf.clone())).collect();
    let graph = trace(&named, &Tensor::zeros(&[1, 3, 8, 8]), |x| {
        let leaf = |i: usize| x.tape().leaf(&leaves[i]);
        let c = x.conv2d(leaf(0), None, ConvAttrs::new(1, 1))?;
        let norm =
            |i| c.batch_norm2d(leaf(1), leaf(2), leaf(i), leaf(i + 1), BatchNorm2d::default());
        let y = norm(4)?;
        let y = match added {
            Added::Nothing => y,
            Added::Right => y.add(c)?,
            Added::Left => c.add(y)?,
            Added::Column => y.add(leaf(3))?,
            Added::Norm => y.add(norm(6)?)?,
        };
        y.relu()?.global_avg_pool()?.flatten()
    })
    .unwrap();
    // Recorded again, as a part of another network is, it is the same operators.
    let again = trace(&named, &Tensor::zeros(&[1, 3, 8, 8]), |x| graph.run(x)).unwrap();
    let ops = |graph: &Graph| {
        Vec::from_iter(graph.nodes().iter().filter_map(|node| Some(node.op()?.name())))
    };
    assert_eq!(ops(&again), ops(&graph), "{added:?}");
    let saved = [false, true].map(|half| Saving { half, ..Saving::default() });
    for (mode, saving) in
        [Mode::TRAIN, Mode::EVAL].into_iter().flat_map(|mode| saved.map(|s| (mode, s)))
    {
        let run = |fused: bool| {
            let graph = graph.detach();
            let tape = Tape::new(mode).with_saving(saving).with_spans();
            let x = tape.variable(values(&[4, 3, 8, 8], 9));
            let y = if fused { graph.run(x) } else { graph.run_with(x, |_, _| {}) }.unwrap();
            let grads = y.backward_with(values(&[4, 6], 5));
            let mut all = vec![y.tensor(), grads.of(x).unwrap().clone()];
            for (_, leaf) in graph.leaves() {
                all.extend([grads.get(&leaf).cloned(), Some(leaf.get())].into_iter().flatten());
            }
            (all, tape.take_spans().iter().map(|span| span.op).collect::<Vec<_>>())
        };
        let ((fused, short), (plain, long)) = (run(true), run(false));
        assert_eq!(fused, plain, "{added:?}, {mode:?}, {saving:?}");
        let sums = if added == Added::Nothing { 0 } else { 2 };
        for (op, times) in [("relu", 2), ("add", sums)] {
            assert_eq!(short.iter().filter(|ran| **ran == op).count(), 0);
            assert_eq!(long.iter().filter(|ran| **ran == op).count(), times);
        }
    }
}
