//! The parameters of integer operators that combine activations, from the grids they read and write.

use ottava_tensor::conv::int8::AddCodes;
use ottava_tensor::pool::int8::Average;

use crate::{Activation, QParams};

/// The sum of codes on the grids `a` and `b`, on the grid `y`, clamped by the fused activation:
/// `round(a·r_a + (b·r_b + fixed))` with `r = s / s_y` and `fixed = z_y − (r_a·z_a + r_b·z_b)`, all in
/// `f32`, each product rounded together with its sum.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearAdd` on CPUs with FMA, whose order of operations this is.
pub fn add_codes(a: QParams, b: QParams, y: QParams, activation: Activation) -> AddCodes {
    let (a, b, y) = (a.to_unsigned(), b.to_unsigned(), y.to_unsigned());
    let y = activation.clamp(y);
    let (a_ratio, b_ratio) = (a.scale() / y.scale(), b.scale() / y.scale());
    let zeros = a_ratio * a.zero_point() as f32 + b_ratio * b.zero_point() as f32;
    AddCodes {
        a_ratio,
        b_ratio,
        fixed: y.zero_point() as f32 - zeros,
        low: y.qmin() as u8,
        high: y.qmax() as u8,
    }
}

/// The codes on the grid `y` of the values of all codes on the grid `x`: `quantize(dequantize(q))`.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearConcat`.
pub fn requantize_codes(x: QParams, y: QParams) -> [u8; 256] {
    let (x, y) = (x.to_unsigned(), y.to_unsigned());
    std::array::from_fn(|code| y.quantize(x.dequantize(code as i32)) as u8)
}

/// The step from codes on the grid `x` to their mean over a window on the grid `y`:
/// `multiplier = s_x / (s_y · n)`.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearGlobalAveragePool`.
pub fn average(x: QParams, y: QParams, count_padding: bool) -> Average {
    let (x, y) = (x.to_unsigned(), y.to_unsigned());
    Average {
        x_scale: x.scale(),
        x_zero: x.zero_point() as u8,
        y_scale: y.scale(),
        zero_point: y.zero_point() as u8,
        low: y.qmin() as u8,
        high: y.qmax() as u8,
        count_padding,
    }
}
