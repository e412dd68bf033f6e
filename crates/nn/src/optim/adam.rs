use ottava_autograd::{Gradients, Leaf};
use ottava_tensor::Tensor;

use super::slots::Slots;
use super::{Optimizer, OptimizerConfig, OptimizerKind};
use crate::Result;

/// Adam: steps by the mean of the gradient over the root of the mean of its square.
///
/// `m ← m + (1 − β₁)(g − m)`, `v ← β₂·v + (1 − β₂)·g²`,
/// `w ← w − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + eps)`; `g = ∂w + decay·w` (Adam), or `g = ∂w` and
/// first `w ← w·(1 − lr·decay)` (AdamW).
///
/// # Source
/// Kingma and Ba 2014, arXiv:1412.6980; PyTorch `torch.optim.Adam`, `AdamW`.
pub struct Adam {
    betas: [f64; 2],
    eps: f32,
    decoupled: bool,
    slots: Slots,
}

impl Adam {
    pub(super) fn new(
        config: &OptimizerConfig,
        parameters: Vec<(String, Leaf)>,
        decays: impl Fn(&str, &Leaf) -> bool,
    ) -> Self {
        let OptimizerConfig { kind, betas, eps, weight_decay, .. } = *config;
        let decay = |name: &str, leaf: &Leaf| if decays(name, leaf) { weight_decay } else { 0.0 };
        Self {
            betas,
            eps: eps as f32,
            decoupled: kind == OptimizerKind::AdamW,
            slots: Slots::new(&["exp_avg", "exp_avg_sq"], parameters, decay),
        }
    }
}

impl Optimizer for Adam {
    fn step(&mut self, gradients: &Gradients, lr: f32) -> Result<()> {
        let ([beta1, beta2], eps, decoupled) = (self.betas, self.eps, self.decoupled);
        self.slots.step(gradients, |decay, step| {
            // Constants in f64, as in PyTorch; elements in f32.
            let correction = |beta: f64| 1.0 - beta.powf(f64::from(step));
            let rate = (f64::from(lr) / correction(beta1)) as f32;
            let root = correction(beta2).sqrt() as f32;
            let (add, kept) = if decoupled {
                (0.0, (1.0 - f64::from(lr) * f64::from(decay)) as f32)
            } else {
                (decay, 1.0)
            };
            let (new1, old2, new2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
            move |w: f32, g: f32, [m, v]: [f32; 2]| {
                let (w, g) = (w * kept, g + add * w);
                let m = m + new1 * (g - m);
                let v = old2 * v + new2 * g * g;
                (w - rate * (m / (v.sqrt() / root + eps)), [m, v])
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
