//! A graph runs BatchNorm and ReLU as one: the same bits, forward and back.

use ottava_autograd::ops::BatchNorm2d;
use ottava_autograd::{Leaf, Mode, Tape, trace};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

fn values(shape: &[usize], seed: usize) -> Tensor<f32> {
    let len = shape.iter().product::<usize>();
    let data: Vec<f32> =
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::new(shape, data).unwrap()
}

#[test]
fn batch_norm_and_relu_in_one_pass_change_no_bit() {
    let params = [values(&[6, 3, 3, 3], 1), values(&[6], 2), values(&[6], 3)];
    let mut leaves: Vec<Leaf> = params.into_iter().map(Leaf::param).collect();
    leaves.extend([Tensor::zeros(&[6]), Tensor::full(&[6], 1.0)].map(Leaf::buffer));
    let named: Vec<_> =
        leaves.iter().enumerate().map(|(i, leaf)| (format!("l{i}"), leaf.clone())).collect();
    let graph = trace(&named, &Tensor::zeros(&[1, 3, 8, 8]), |x| {
        let leaf = |i: usize| x.tape().leaf(&leaves[i]);
        let y = x.conv2d(leaf(0), None, ConvAttrs::new(1, 1))?;
        let y = y.batch_norm2d(leaf(1), leaf(2), leaf(3), leaf(4), BatchNorm2d::default())?;
        y.relu()?.global_avg_pool()?.flatten()
    })
    .unwrap();
    for mode in [Mode::TRAIN, Mode::EVAL] {
        let run = |fused: bool| {
            let graph = graph.detach();
            let tape = Tape::new(mode).with_spans();
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
        assert_eq!(fused, plain);
        assert_eq!(short.iter().filter(|op| **op == "relu").count(), 0);
        assert_eq!(long.iter().filter(|op| **op == "relu").count(), 2);
    }
}
