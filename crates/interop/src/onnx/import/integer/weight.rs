//! Weights and biases: constants that are codes.

use std::sync::Arc;

use ottava_tensor::Tensor;

use super::super::super::attributes::Check;
use super::super::super::constant::{Constant, Constants, Integers};
use super::super::super::proto::{Node, data_type};
use super::super::layers::check_bias;

/// Codes, and the grid of each channel along an axis. Shares its numbers with the constants it is of.
#[derive(Clone)]
pub(super) struct Weight {
    /// The constant that holds the codes.
    pub name: String,
    codes: Integers,
    scales: Tensor<f32>,
    zeros: Arc<[i64]>,
    axis: usize,
}

impl Weight {
    /// The codes of the constant `name` with the scales that `node` reads at `index`, the zero-points
    /// behind them, and the `axis` they are along.
    pub(super) fn new(
        name: &str,
        codes: &Integers,
        constants: &Constants,
        (node, index, axis): (&Node, usize, i64),
    ) -> Check<Self> {
        let (scales, zeros, axis) = grids(&codes.shape, constants, (node, index, axis))?;
        if !matches!(codes.data_type, data_type::INT8 | data_type::UINT8 | data_type::INT32) {
            let kind = codes.data_type;
            return Err(format!("{name:?} has element type {kind}; s8, u8 and s32 are read"));
        }
        Ok(Self { name: name.into(), codes: codes.clone(), scales, zeros, axis })
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.codes.shape
    }

    pub(super) fn len(&self) -> usize {
        self.codes.numbers.len()
    }

    /// Codes less zero-points, `out` being the axis of output channels and coming first; and the scale
    /// of each channel. `out` is 0, or 1 of a matrix.
    pub(super) fn channels(&self, out: usize) -> Check<(Tensor<i8>, Vec<f32>)> {
        let Self { name, codes, scales, zeros, axis } = self;
        let shape = &codes.shape;
        let refuse = |reason: String| Err(format!("weight {name:?}: {reason}"));
        let matrix = shape.len() == 2;
        if out >= shape.len() || (out == 1 && !matrix) || shape[out] == 0 {
            return refuse(format!("shape {shape:?}"));
        }
        if (scales.len() > 1 || zeros.len() > 1) && *axis != out {
            return refuse(format!("scales along axis {axis}, where outputs are axis {out}"));
        }
        let inner = self.inner();
        let mut signed = Vec::with_capacity(self.len());
        for (i, &code) in codes.numbers.iter().enumerate() {
            let zero = zeros[(i / inner) % zeros.len()];
            match i8::try_from(code.saturating_sub(zero)) {
                Ok(code) => signed.push(code),
                Err(_) => {
                    return refuse(format!(
                        "code {code} less zero-point {zero} is beyond s8; quantize weights \
                         symmetrically (or u8 with zero-point 128)"
                    ));
                }
            }
        }
        let mut tensor = Tensor::new(shape, signed).map_err(|error| error.to_string())?;
        if out == 1 {
            tensor = tensor.transpose(0, 1).map_err(|error| error.to_string())?.contiguous();
        }
        let scales = match scales.to_vec()[..] {
            [scale] => vec![scale; shape[out]],
            ref scales => scales.to_vec(),
        };
        Ok((tensor, scales))
    }

    /// A bias in `units`, one a channel: the codes themselves if they are in them already.
    pub(super) fn bias(&self, units: &[f32]) -> Check<Vec<i32>> {
        let (inner, scales) = (self.inner(), self.scales.to_vec());
        let value = |i: usize| {
            let channel = i / inner;
            let zero = self.zeros[channel % self.zeros.len()];
            let code = self.codes.numbers[i].saturating_sub(zero);
            (code, f64::from(scales[channel % scales.len()]))
        };
        bias(&self.name, self.shape(), units, |i, unit| {
            let (code, scale) = value(i);
            // Scales are written as products, which round.
            if (scale - unit).abs() <= 1e-6 * unit {
                code as f64
            } else {
                code as f64 * scale / unit
            }
        })
    }

    /// Codes from one index of the axis to the next.
    fn inner(&self) -> usize {
        self.codes.shape[(self.axis + 1).min(self.codes.shape.len())..]
            .iter()
            .product::<usize>()
            .max(1)
    }
}

/// A bias of codes that are in the units already.
pub(super) fn integer_bias(name: &str, codes: &Integers, units: &[f32]) -> Check<Vec<i32>> {
    bias(name, &codes.shape, units, |i, _| codes.numbers[i] as f64)
}

/// A bias of floats.
pub(super) fn float_bias(name: &str, values: &Tensor<f32>, units: &[f32]) -> Check<Vec<i32>> {
    let numbers = values.to_vec();
    bias(name, values.shape(), units, |i, unit| f64::from(numbers[i]) / unit)
}

/// `round(code(channel, unit))` for each channel; one number stands for all channels.
fn bias(
    name: &str,
    shape: &[usize],
    units: &[f32],
    code: impl Fn(usize, f64) -> f64,
) -> Check<Vec<i32>> {
    check_bias(name, shape, units.len())?;
    let one = shape.iter().all(|&size| size == 1);
    let channels = units.iter().enumerate().map(|(i, &unit)| {
        let code = code(if one { 0 } else { i }, f64::from(unit)).round_ties_even();
        match code.abs() <= f64::from(i32::MAX) {
            true => Ok(code as i32),
            false => Err(format!("bias {name:?}: {code} is beyond 32 bits")),
        }
    });
    channels.collect()
}

/// The codes of a constant that is quantized in the file itself, as `QuantizeLinear` rounds.
pub(super) fn quantize(
    values: &Tensor<f32>,
    constants: &Constants,
    node: &Node,
) -> Check<Integers> {
    let shape = values.shape().to_vec();
    let (scales, zeros, axis) = grids(&shape, constants, (node, 1, node.int("axis", 1)))?;
    let data_type = match constants.of(node, 2) {
        Some(Constant::Int(zero)) => zero.data_type,
        _ => match node.int("output_dtype", 0) {
            0 => data_type::UINT8,
            kind => i32::try_from(kind).map_err(|_| format!("output_dtype {kind}"))?,
        },
    };
    let (low, high) = match data_type {
        data_type::UINT8 => (0.0, 255.0),
        data_type::INT8 => (-128.0, 127.0),
        data_type::INT32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        kind => return Err(format!("codes of element type {kind}; s8, u8 and s32 are read")),
    };
    if let Some(bad) = values.iter().find(|x| !x.is_finite()) {
        let name = node.input(0).unwrap_or_default();
        return Err(format!("{name:?} holds {bad}, which is no weight"));
    }
    let scales = scales.to_vec();
    let inner = shape[(axis + 1).min(shape.len())..].iter().product::<usize>().max(1);
    let code = |(i, x): (usize, f32)| {
        let channel = i / inner;
        let (scale, zero) = (scales[channel % scales.len()], zeros[channel % zeros.len()]);
        (f64::from((x / scale).round_ties_even()) + zero as f64).clamp(low, high) as i64
    };
    let numbers = values.to_vec().into_iter().enumerate().map(code).collect();
    Ok(Integers { shape, numbers, data_type })
}

/// Scales, zero-points and their axis, for a tensor of a shape.
fn grids(
    shape: &[usize],
    constants: &Constants,
    (node, index, axis): (&Node, usize, i64),
) -> Check<(Tensor<f32>, Arc<[i64]>, usize)> {
    if node.int("block_size", 0) != 0 {
        return Err("scales for blocks of a channel".into());
    }
    let scales = constants.floats(node, index)?.1;
    let zeros = constants.integers(node, index + 1, "")?.unwrap_or_else(|| vec![0].into());
    let rank = shape.len() as i64;
    let axis = if axis < 0 { axis.saturating_add(rank) } else { axis };
    let axis = usize::try_from(axis).map_err(|_| format!("axis {axis} of {rank}"))?;
    let fits = |len: usize| len == 1 || shape.get(axis) == Some(&len);
    if scales.is_empty() || zeros.is_empty() || !fits(scales.len()) || !fits(zeros.len()) {
        return Err(format!(
            "{} scales and {} zero-points along axis {axis} of a constant of shape {shape:?}",
            scales.len(),
            zeros.len()
        ));
    }
    let bad = scales.iter().find(|scale| !(scale.is_finite() && *scale > 0.0));
    match bad {
        Some(scale) => Err(format!("scale {scale} must be finite and above zero")),
        None => Ok((scales, zeros, axis)),
    }
}
