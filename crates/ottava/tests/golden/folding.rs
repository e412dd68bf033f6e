//! Convolution, BatchNorm and ReLU with rounded weights: three training steps of PyTorch's
//! `ConvBnReLU2d`.

use ottava::autograd::ops::{BatchNorm2d, Folding, LayerKind, QuantLayer};
use ottava::autograd::{Gradients, Leaf, Mode, Tape};
use ottava::quant::{Activation, WeightSpec};
use ottava::tensor::Tensor;
use ottava::tensor::conv::ConvAttrs;

use crate::case::Case;

/// A layer in PyTorch's approximate form, in float but for its weights.
struct Layer {
    op: QuantLayer,
    mode: Mode,
    weight: Leaf,
    /// BatchNorm's weight, bias, running mean and running variance.
    norm: [Leaf; 4],
}

impl Layer {
    fn of(case: &Case) -> Self {
        let attrs = ConvAttrs {
            stride: [case.number("stride") as usize; 2],
            padding: [case.number("padding") as usize; 4],
            ..ConvAttrs::default()
        };
        let op = QuantLayer {
            kind: LayerKind::Conv(attrs),
            weight: WeightSpec::default(),
            learn_scales: false,
            bias: false,
            norm: Some(BatchNorm2d::default()),
            folding: Folding::Approximate,
            activation: Activation::RELU,
            output: None,
        };
        let mode = Mode { batch_stats: !case.flag("freeze_bn"), observe: false, quantize: true };
        let before = |name: &str| case.float(&format!("before.{name}"));
        let norm = [
            Leaf::param(before("bn.weight")),
            Leaf::param(before("bn.bias")),
            Leaf::buffer(before("bn.running_mean")),
            Leaf::buffer(before("bn.running_var")),
        ];
        Self { op, mode, weight: Leaf::param(before("weight")), norm }
    }

    /// The scale of each channel's folded weight, as this layer would choose it.
    fn scales(&self) -> Vec<f32> {
        let mut leaves = vec![self.weight.get()];
        leaves.extend(self.norm.iter().map(Leaf::get));
        self.op.scales(&leaves).unwrap()
    }

    /// `γ / √(var + eps)`.
    fn factors(&self) -> Vec<f32> {
        let [gamma, var] = [0, 3].map(|i| self.norm[i].get().to_vec());
        gamma.iter().zip(var).map(|(g, v)| g / (v + 1e-5).sqrt()).collect()
    }

    /// Runs a step, with given scales of the folded weights or its own, and compares everything.
    fn check(&self, case: &Case, step: usize, held: Option<&[f32]>) {
        let stored = |name: &str| case.float(&format!("step.{step}.{name}"));
        let scales = held.map(|scales| {
            let unfolded: Vec<f32> =
                scales.iter().zip(self.factors()).map(|(s, f)| unfold(*s, f.abs())).collect();
            Leaf::param(Tensor::new(&[unfolded.len()], unfolded).unwrap())
        });
        let tape = Tape::new(self.mode);
        let x = tape.variable(stored("in.x"));
        let mut inputs = vec![x, tape.leaf(&self.weight)];
        inputs.extend(self.norm.iter().chain(&scales).map(|leaf| tape.leaf(leaf)));
        let op = QuantLayer { learn_scales: scales.is_some(), ..self.op };
        let y = tape.apply(op.into(), &inputs).unwrap();
        case.assert_close("y", &y.tensor(), &stored("out.y"));
        let gradients: Gradients = y.backward_with(stored("grad_out.y"));
        case.assert_close("grad x", gradients.of(x).unwrap(), &stored("grad.x"));
        let [gamma, beta, mean, var] = &self.norm;
        for (leaf, name) in
            [(&self.weight, "grad.weight"), (gamma, "grad.bn.weight"), (beta, "grad.bn.bias")]
        {
            case.assert_close(name, gradients.get(leaf).unwrap(), &stored(name));
        }
        case.assert_close("running mean", &mean.get(), &stored("running_mean"));
        case.assert_close("running var", &var.get(), &stored("running_var"));
    }
}

/// The scale `u` for which `u · f` is `folded`, to the last place if there is one.
fn unfold(folded: f32, f: f32) -> f32 {
    let near = folded / f;
    let candidates = [near, near.next_down(), near.next_up()];
    candidates.into_iter().find(|u| u * f == folded).unwrap_or(near)
}

/// With the scales that PyTorch had in each step, everything is PyTorch's: values, gradients, statistics.
pub fn conv_bn_relu_qat(case: &Case) {
    let layer = Layer::of(case);
    for step in 0..3 {
        let scales = case.float(&format!("step.{step}.weight_scale")).to_vec();
        layer.check(case, step, Some(&scales));
    }
}

/// Where we deviate on purpose: PyTorch's scale is a moving average, which lags behind the folded weights
/// as soon as the statistics move; ours is that of the present weights (docs/semantics.md, section 2).
/// While nothing lags, both are the same.
pub fn weight_scales_are_of_the_present_weights_where_pytorch_averages(case: &Case) {
    let layer = Layer::of(case);
    let mut average: Vec<f32> = Vec::new();
    for step in 0..3 {
        let ours = layer.scales();
        let weight = layer.weight.get().to_vec();
        let factors = layer.factors();
        let channels = weight.chunks(weight.len() / factors.len()).zip(&factors);
        let rule: Vec<f32> = channels
            .map(|(w, f)| w.iter().fold(0.0f32, |most, w| most.max((w * f).abs())) / 127.0)
            .collect();
        assert_eq!(ours, rule, "{} step {step}", case.name);

        let theirs = case.float(&format!("step.{step}.weight_scale")).to_vec();
        let c = case.number("averaging_constant") as f32;
        average = match step {
            0 => ours.clone(),
            _ => average.iter().zip(&ours).map(|(m, s)| m + c * (s - m)).collect(),
        };
        for (channel, (mean, theirs)) in average.iter().zip(&theirs).enumerate() {
            assert!(
                (mean - theirs).abs() <= 1e-5 * theirs,
                "{} step {step}, channel {channel}: the average of our scales is {mean}, PyTorch's {theirs}",
                case.name
            );
        }
        if step == 0 || case.flag("freeze_bn") {
            layer.check(case, step, None);
        } else {
            assert_ne!(ours, theirs, "{} step {step}: nothing lags", case.name);
            layer.check(case, step, Some(&theirs));
        }
    }
}
