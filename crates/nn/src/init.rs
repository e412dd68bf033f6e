//! What parameters start from. Every function takes its random numbers from the generator it is
//! given: the same seed gives the same weights.

use ottava_tensor::Tensor;
use rand::{RngExt as _, SeedableRng as _};

/// The generator that initialises parameters: ChaCha with 8 rounds, the same on every machine.
pub type Rng = rand::rngs::ChaCha8Rng;

/// A generator for a seed.
pub fn rng(seed: u64) -> Rng {
    Rng::seed_from_u64(seed)
}

/// Which side of a layer keeps its variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// Forward: elements a single output is a sum of.
    In,
    /// Backward: elements a single input contributes to.
    Out,
}

impl Fan {
    /// The fan of a weight `[out, in / groups, …]`.
    pub fn of(self, shape: &[usize]) -> usize {
        let window = shape.iter().skip(2).product::<usize>();
        let channels = match self {
            Self::In => shape.get(1),
            Self::Out => shape.first(),
        };
        window * channels.copied().unwrap_or(1)
    }
}

/// `N(0, 2 / fan)`, for layers followed by a ReLU.
///
/// # Source
/// He et al. 2015, arXiv:1502.01852; PyTorch `torch.nn.init.kaiming_normal_`.
pub fn kaiming_normal(shape: &[usize], fan: Fan, rng: &mut Rng) -> Tensor<f32> {
    normal(shape, (2.0 / fan.of(shape).max(1) as f64).sqrt(), rng)
}

/// `U(−b, b)` with `b = √(6 / fan)`, for layers followed by a ReLU.
///
/// # Source
/// He et al. 2015, arXiv:1502.01852; PyTorch `torch.nn.init.kaiming_uniform_`.
pub fn kaiming_uniform(shape: &[usize], fan: Fan, rng: &mut Rng) -> Tensor<f32> {
    uniform(shape, (6.0 / fan.of(shape).max(1) as f64).sqrt(), rng)
}

/// `U(−b, b)` with `b = 1 / √fan_in`: what PyTorch gives the weights and biases of convolutions and
/// linear layers unless told otherwise.
///
/// # Source
/// PyTorch `torch.nn.Linear.reset_parameters` (`kaiming_uniform_` with `a = √5`).
pub fn torch_default(shape: &[usize], fan_in: usize, rng: &mut Rng) -> Tensor<f32> {
    uniform(shape, (1.0 / fan_in.max(1) as f64).sqrt(), rng)
}

/// `U(−bound, bound)`.
pub fn uniform(shape: &[usize], bound: f64, rng: &mut Rng) -> Tensor<f32> {
    fill(shape, || (2.0 * rng.random::<f64>() - 1.0) * bound)
}

/// `N(0, std²)`.
pub fn normal(shape: &[usize], std: f64, rng: &mut Rng) -> Tensor<f32> {
    let mut spare = None;
    fill(shape, || std * spare.take().unwrap_or_else(|| polar(rng, &mut spare)))
}

/// Marsaglia's polar method: two normal values from a point in the unit disc, without the sine and
/// cosine of Box and Muller.
fn polar(rng: &mut Rng, spare: &mut Option<f64>) -> f64 {
    loop {
        let (u, v) = (2.0 * rng.random::<f64>() - 1.0, 2.0 * rng.random::<f64>() - 1.0);
        let s = u * u + v * v;
        if s > 0.0 && s < 1.0 {
            let factor = (-2.0 * s.ln() / s).sqrt();
            *spare = Some(v * factor);
            return u * factor;
        }
    }
}

fn fill(shape: &[usize], mut value: impl FnMut() -> f64) -> Tensor<f32> {
    let mut tensor = Tensor::zeros(shape);
    for element in tensor.data_mut() {
        *element = value() as f32;
    }
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(x: &Tensor<f32>) -> (f64, f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(f64::from).sum::<f64>() / n;
        (mean, x.iter().map(|x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn variance_is_two_by_fan() {
        // 64·64·9 samples: the standard error of the variance is √(2/36864), below 1 %.
        let shape = [64, 32, 3, 3];
        for (fan, expected) in [(Fan::In, 2.0 / 288.0f64), (Fan::Out, 2.0 / 576.0)] {
            for x in [
                kaiming_normal(&shape, fan, &mut rng(1)),
                kaiming_uniform(&shape, fan, &mut rng(1)),
            ] {
                let (mean, variance) = moments(&x);
                assert!(mean.abs() < 0.05 * expected.sqrt(), "{mean}");
                assert!((variance / expected - 1.0).abs() < 0.05, "{variance} for {expected}");
            }
        }
    }

    #[test]
    fn a_seed_is_a_set_of_weights() {
        let draw = |seed| normal(&[7], 1.0, &mut rng(seed)).to_vec();
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn torch_default_stays_within_its_bound() {
        let x = torch_default(&[100, 25], 25, &mut rng(0));
        let (low, high) = x.min_max().unwrap();
        assert!((-0.2..-0.19).contains(&low) && (0.19..0.2).contains(&high), "{low}, {high}");
    }
}
