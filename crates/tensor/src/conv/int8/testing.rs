//! Data for tests: random bytes, and the extremes that random search rarely meets.

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
