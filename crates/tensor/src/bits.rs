//! One bit an element, in words: where a gradient passes.

/// Elements of a word.
pub const WORD: usize = u64::BITS as usize;

/// A bit for each of 64 bytes that are 0 or 1, the first the lowest.
#[inline(always)]
pub fn pack(bytes: &[u8; WORD]) -> u64 {
    // Bit 0 of byte k moves to bit 56 + k of the product; no two terms meet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (eights, _) = bytes.as_chunks::<8>();
    eights
        .iter()
        .rev()
        .fold(0, |word, &eight| word << 8 | u64::from_le_bytes(eight).wrapping_mul(GATHER) >> 56)
}

/// A bit for each of up to 64 values, the first the lowest: whether it `passes`.
#[inline(always)]
pub fn word(values: &[f32], passes: impl Fn(f32) -> bool) -> u64 {
    let mut bytes = [0; WORD];
    for (byte, &value) in bytes.iter_mut().zip(values) {
        *byte = u8::from(passes(value));
    }
    pack(&bytes)
}

/// The values whose bits are set, and zeros in the place of the others; `words` begin with the first
/// value's.
#[inline(always)]
pub fn select(words: &[u64], values: &[f32], selected: &mut [f32]) {
    let blocks = values.chunks(WORD).zip(selected.chunks_mut(WORD));
    for ((values, selected), word) in blocks.zip(words) {
        let eights = values.chunks(8).zip(selected.chunks_mut(8));
        for ((values, selected), byte) in eights.zip(word.to_le_bytes()) {
            let lanes = &LANES[usize::from(byte)];
            for ((selected, value), lane) in selected.iter_mut().zip(values).zip(lanes) {
                *selected = masked(*value, *lane);
            }
        }
    }
}

/// [`select`] in place.
#[inline(always)]
pub fn keep(words: &[u64], values: &mut [f32]) {
    for (values, word) in values.chunks_mut(WORD).zip(words) {
        for (values, byte) in values.chunks_mut(8).zip(word.to_le_bytes()) {
            for (value, lane) in values.iter_mut().zip(&LANES[usize::from(byte)]) {
                *value = masked(*value, *lane);
            }
        }
    }
}

/// A select, not a product: infinity times zero would be NaN.
#[inline(always)]
fn masked(value: f32, lane: u32) -> f32 {
    f32::from_bits(value.to_bits() & lane)
}

/// All ones for each bit that is set, for every byte.
static LANES: [[u32; 8]; 256] = {
    let mut lanes = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            lanes[byte][bit] = if byte >> bit & 1 == 1 { u32::MAX } else { 0 };
            bit += 1;
        }
        byte += 1;
    }
    lanes
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_selects() {
        let set = |i: usize| (i * 7919) % 3 == 1;
        let bytes: [u8; WORD] = std::array::from_fn(|i| u8::from(set(i)));
        let words = [pack(&bytes), 1];
        for len in [0, 1, 7, 64, 65] {
            let mut values = vec![f32::INFINITY; len];
            let mut selected = vec![f32::NAN; len];
            select(&words, &values, &mut selected);
            keep(&words, &mut values);
            assert_eq!(values, selected);
            let passes = |i: usize| if i < WORD { set(i) } else { i == WORD };
            for (i, value) in values.into_iter().enumerate() {
                assert_eq!(value, if passes(i) { f32::INFINITY } else { 0.0 });
            }
        }
    }
}
