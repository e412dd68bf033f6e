use super::{Codes, Epilogue, MAX_LANES, Scratch, Sink};
use crate::conv::int8::{AddCodes, Requantize};
use crate::shared::Shared;

/// What becomes of exact sums, where they are still in registers. Tensors are NHWC, matrices row-major:
/// channels, or columns, lie next to each other.
pub enum Output<'a> {
    /// As they are.
    Accumulate(&'a mut [i32]),
    /// As floats, each channel's sums times its own factor: `acc as f32 · scale[c]`, rounded once.
    Scale(&'a [f32], &'a mut [f32]),
    /// Through the law of [`Requantize`], which adds a bias and may hold a ReLU.
    Requantize(&'a Requantize, &'a mut [u8]),
    /// Requantized, then added to the residual, which is `b` of [`AddCodes`] and has the output's
    /// shape: the sum's code is rounded twice, as in two separate operations.
    RequantizeAdd(&'a Requantize, &'a AddCodes, &'a [u8], &'a mut [u8]),
}

impl<'a> Output<'a> {
    /// Bytes that [`epilogue`](Self::epilogue) takes, whatever the output.
    pub(crate) fn scratch_len(channels: usize) -> usize {
        let padded = channels + MAX_LANES;
        Scratch::bytes::<i32>(padded) + Scratch::bytes::<f32>(padded)
    }

    /// The output of `rows` of sums with its bias (`excess`, the zero point's share, taken out as often as
    /// weights sum to) and multipliers, a vector longer than the channels so that kernels read whole vectors.
    ///
    /// # Panics
    /// If a slice is not as long as the rows and `sums` say.
    pub(crate) fn epilogue(
        self,
        rows: usize,
        sums: &[i32],
        excess: i32,
        scratch: &mut Scratch<'a>,
    ) -> Epilogue<'a> {
        let channels = sums.len();
        let len = rows * channels;
        let padded = scratch.take::<i32>(channels + MAX_LANES);
        padded.fill(0);
        for (padded, sum) in padded.iter_mut().zip(sums) {
            *padded = excess.wrapping_mul(*sum).wrapping_neg();
        }
        let mut per_channel = |values: &[f32]| {
            assert_eq!(values.len(), channels, "one factor for each channel");
            let longer = scratch.take::<f32>(channels + MAX_LANES);
            longer.fill(0.0);
            longer[..channels].copy_from_slice(values);
            &*longer
        };
        let mut law = |law: &Requantize| {
            assert_eq!(law.bias.len(), channels, "one bias for each channel");
            for (padded, bias) in padded.iter_mut().zip(&law.bias) {
                *padded = padded.wrapping_add(*bias);
            }
            (per_channel(&law.multiplier), law.grid())
        };
        let sink = match self {
            Self::Accumulate(out) => {
                assert_eq!(out.len(), len, "the output of {rows} rows");
                Sink::Accumulate(Shared::new(out))
            }
            Self::Scale(scale, out) => {
                assert_eq!(out.len(), len, "the output of {rows} rows");
                Sink::Scale { scale: per_channel(scale), values: Shared::new(out) }
            }
            Self::Requantize(requantize, out) => {
                assert_eq!(out.len(), len, "the output of {rows} rows");
                let (multiplier, grid) = law(requantize);
                Sink::Requantize(Codes { multiplier, grid, out: Shared::new(out) })
            }
            Self::RequantizeAdd(requantize, add, residual, out) => {
                let lens = (out.len(), residual.len());
                assert_eq!(lens, (len, len), "the output and residual of {rows} rows");
                let (multiplier, grid) = law(requantize);
                let codes = Codes { multiplier, grid, out: Shared::new(out) };
                Sink::RequantizeAdd(codes, add, residual)
            }
        };
        Epilogue { bias: padded, channels, sink }
    }
}
