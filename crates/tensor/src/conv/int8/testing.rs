//! Data for tests: random bytes, and the extremes that random search rarely meets; and what the laws make
//! of sums.

use super::{AddCodes, Output, Requantize};

/// Codes and weights; `extreme` 0: random, 1: all largest, 2: largest and smallest in turn, 3: all
/// smallest weights with mixed codes, 4: random weights of 4 bits, 5: the largest that are as narrow.
pub(crate) fn data(codes: usize, weights: usize, extreme: u8, seed: u64) -> (Vec<u8>, Vec<i8>) {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let alternate = |i: usize| if i.is_multiple_of(2) { 255 } else { 0 };
    match extreme {
        0 => {
            let x = (0..codes).map(|_| random()).collect();
            (x, (0..weights).map(|_| random() as i8).collect())
        }
        1 => (vec![255; codes], vec![127; weights]),
        2 => {
            let w = |i| if i % 2 == 0 { 127 } else { -128 };
            ((0..codes).map(alternate).collect(), (0..weights).map(w).collect())
        }
        4 => {
            let x = (0..codes).map(|_| random()).collect();
            (x, (0..weights).map(|_| (random() % 17) as i8 - 8).collect())
        }
        5 => (vec![255; codes], vec![if seed.is_multiple_of(2) { 8 } else { -8 }; weights]),
        _ => ((0..codes).map(|_| random()).collect(), vec![-128; weights]),
    }
}

/// The four outputs of some sums, by the laws.
pub(crate) struct Laws {
    requantize: Requantize,
    add: AddCodes,
    residual: Vec<u8>,
    sums: Vec<i32>,
    floats: Vec<f32>,
    codes: Vec<u8>,
    added: Vec<u8>,
}

impl Laws {
    /// Of rows of as many sums as there are channels, with parameters that use most of the codes.
    pub(crate) fn new(sums: &[i32], channels: usize, zero: u8, seed: u64) -> Self {
        let largest = sums.iter().map(|sum| sum.unsigned_abs()).max().unwrap_or(1).max(1) as f32;
        let requantize = Requantize {
            bias: (0..channels as i32).map(|c| c * 37 - 300).collect(),
            multiplier: (0..channels).map(|c| 140.0 / largest * (1.0 + c as f32 / 64.0)).collect(),
            zero_point: zero / 2 + 50,
            low: zero / 4,
            high: 255 - zero / 8,
        };
        let add = AddCodes { a_ratio: 0.7, b_ratio: 0.4, fixed: -3.3, low: 9, high: 250 };
        let (residual, _) = data(sums.len(), 0, 0, seed);
        let per_channel = || sums.iter().enumerate().map(|(i, &sum)| (i % channels, sum));
        let codes: Vec<u8> = per_channel().map(|(c, sum)| requantize.apply(c, sum)).collect();
        Self {
            floats: per_channel().map(|(c, sum)| sum as f32 * requantize.multiplier[c]).collect(),
            added: codes.iter().zip(&residual).map(|(&a, &b)| add.apply(a, b)).collect(),
            sums: sums.to_vec(),
            requantize,
            add,
            residual,
            codes,
        }
    }

    /// Where what `run` writes is first wrong: sums, floats, codes, and codes with a residual.
    pub(crate) fn wrong(&self, mut run: impl FnMut(Output<'_>)) -> [Option<usize>; 4] {
        let len = self.sums.len();
        let (mut sums, mut floats) = (vec![-1; len], vec![f32::NAN; len]);
        let (mut codes, mut added) = (vec![1; len], vec![1; len]);
        run(Output::Accumulate(&mut sums));
        run(Output::Scale(&self.requantize.multiplier, &mut floats));
        run(Output::Requantize(&self.requantize, &mut codes));
        run(Output::RequantizeAdd(&self.requantize, &self.add, &self.residual, &mut added));
        [
            first_difference(&sums, &self.sums),
            first_difference(&floats, &self.floats),
            first_difference(&codes, &self.codes),
            first_difference(&added, &self.added),
        ]
    }
}

fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}
