use ottava_autograd::{Gradients, Leaf};
use ottava_tensor::Tensor;

use super::slots::Slots;
use super::{Optimizer, OptimizerConfig};
use crate::Result;

/// Stochastic gradient descent with momentum.
///
/// `g ← ∂w + decay·w`, `v ← momentum·v + g`, `w ← w − lr·v` (Nesterov: `w ← w − lr·(g + momentum·v)`).
///
/// # Source
/// PyTorch `torch.optim.SGD`, dampening 0.
pub struct Sgd {
    momentum: f32,
    nesterov: bool,
    slots: Slots,
}

impl Sgd {
    pub(super) fn new(
        config: &OptimizerConfig,
        parameters: Vec<(String, Leaf)>,
        decays: impl Fn(&str, &Leaf) -> bool,
    ) -> Self {
        let OptimizerConfig { momentum, nesterov, weight_decay, .. } = *config;
        // Without momentum there is nothing to remember.
        let kinds: &[_] = if momentum == 0.0 { &[] } else { &["momentum_buffer"] };
        let decay = |name: &str, leaf: &Leaf| if decays(name, leaf) { weight_decay } else { 0.0 };
        Self { momentum, nesterov, slots: Slots::new(kinds, parameters, decay) }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, gradients: &Gradients, lr: f32) -> Result<()> {
        let (momentum, nesterov) = (self.momentum, self.nesterov);
        if momentum == 0.0 {
            return self.slots.step(gradients, |decay, _| {
                move |w: f32, g: f32, []: [f32; 0]| (w - lr * (g + decay * w), [])
            });
        }
        self.slots.step(gradients, |decay, _| {
            move |w: f32, g: f32, [v]: [f32; 1]| {
                let g = g + decay * w;
                let v = momentum * v + g;
                let step = if nesterov { g + momentum * v } else { v };
                (w - lr * step, [v])
            }
        })
    }

    fn state(&self) -> Vec<(String, Tensor<f32>)> {
        self.slots.state()
    }

    fn load_state(&mut self, state: Vec<(String, Tensor<f32>)>) -> Result<()> {
        self.slots.load_state(state)
    }
}
