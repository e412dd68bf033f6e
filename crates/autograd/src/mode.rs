/// How operators that hold more than one behaviour behave. Operators themselves hold no such state:
/// the same graph trains, calibrates and evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// BatchNorm normalises by the batch and moves its running statistics; otherwise it uses them.
    pub batch_stats: bool,
    /// Observers take in what they see.
    pub observe: bool,
    /// Quantized operators round; otherwise they compute in float.
    pub quantize: bool,
}

impl Mode {
    /// Evaluation: nothing moves, quantized operators round.
    pub const EVAL: Self = Self { batch_stats: false, observe: false, quantize: true };
    /// Training: statistics and observers move, quantized operators round.
    pub const TRAIN: Self = Self { batch_stats: true, observe: true, quantize: true };
    /// Calibration: observers move, everything is computed in float.
    pub const CALIBRATE: Self = Self { batch_stats: false, observe: true, quantize: false };
}
