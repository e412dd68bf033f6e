//! One bit an element, in words: where a gradient passes.

use crate::simd::f32::{Float, dispatch_f32};
use crate::{Level, Tensor, parallel};

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
/// value's. Infinity and NaN are zero there too.
///
/// # Panics
/// If there are fewer bits than values, or not as many results.
pub fn select(level: Level, words: &[u64], values: &[f32], selected: &mut [f32]) {
    assert!(values.len() == selected.len() && words.len() >= values.len().div_ceil(WORD));
    dispatch_f32!(level, isa => {
        let blocks = values.chunks(WORD).zip(selected.chunks_mut(WORD));
        for ((values, selected), &word) in blocks.zip(words) {
            if let (Some(values), Some(selected)) = (values.as_array(), selected.as_mut_array()) {
                *selected = masked(isa, word, values);
            } else {
                selected.copy_from_slice(&masked(isa, word, &padded(values))[..values.len()]);
            }
        }
    });
}

/// [`select`] in place.
///
/// # Panics
/// If there are fewer bits than values.
pub fn keep(level: Level, words: &[u64], values: &mut [f32]) {
    assert!(words.len() >= values.len().div_ceil(WORD));
    dispatch_f32!(level, isa => {
        for (values, &word) in values.chunks_mut(WORD).zip(words) {
            if let Some(values) = values.as_mut_array() {
                *values = masked(isa, word, values);
            } else {
                values.copy_from_slice(&masked(isa, word, &padded(values))[..values.len()]);
            }
        }
    });
}

/// [`keep`] of all values of a tensor as they lie in memory, and what `see` makes of each chunk of so many
/// of them, a multiple of 64, while it is in a cache. A tensor that is nobody else's keeps its memory.
///
/// # Panics
/// If there are fewer bits than values, or the tensor has gaps or another order than row-major or
/// channels-last.
pub fn keep_all<R: Send>(
    words: &[u64],
    values: Tensor<f32>,
    size: usize,
    see: impl Fn(&[f32]) -> R + Sync + Send,
) -> (Tensor<f32>, Vec<R>) {
    assert!(size > 0 && size.is_multiple_of(WORD) && words.len() >= values.len().div_ceil(WORD));
    let (level, last) = (Level::current(), values.is_channels_last());
    assert!(last || values.is_contiguous(), "the order of strides {:?}", values.strides());
    let (mut kept, source) = match (values.is_shared(), last) {
        (false, _) => (values, None),
        (true, true) => (Tensor::recycled_channels_last(values.shape()), Some(values)),
        (true, false) => (Tensor::recycled(values.shape()), Some(values)),
    };
    let source = source.as_ref().map(|source| source.as_dense().expect("in one of two orders"));
    let mut seen = Vec::from_iter((0..kept.len().div_ceil(size)).map(|_| None));
    let items = kept.data_mut().chunks_mut(size).zip(&mut seen).collect();
    parallel::for_each_item(items, |i, (kept, seen): (&mut [f32], &mut Option<R>)| {
        let words = &words[i * (size / WORD)..];
        match source {
            Some(source) => select(level, words, &source[i * size..][..kept.len()], kept),
            None => keep(level, words, kept),
        }
        *seen = Some(see(kept));
    });
    (kept, seen.into_iter().map(|seen| seen.expect("each chunk is seen")).collect())
}

#[inline(always)]
fn masked<I: Float>(isa: I, word: u64, values: &[f32; WORD]) -> [f32; WORD] {
    let mut kept = [0.0; WORD];
    for lane in (0..WORD).step_by(I::LANES) {
        let vector = isa.keep(isa.load(&values[lane..]), (word >> lane) as u32);
        isa.store(&mut kept[lane..], vector);
    }
    kept
}

/// Fewer values than a word has bits, and zeros.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; WORD] {
    let mut word = [0.0; WORD];
    word[..values.len()].copy_from_slice(values);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_selects() {
        let set = |i: usize| (i * 7919) % 3 == 1;
        let bytes: [u8; WORD] = std::array::from_fn(|i| u8::from(set(i)));
        let words = [pack(&bytes), 1];
        for level in Level::available() {
            for len in [0, 1, 7, 64, 65] {
                let mut values = vec![f32::INFINITY; len];
                let mut selected = vec![f32::NAN; len];
                select(level, &words, &values, &mut selected);
                keep(level, &words, &mut values);
                assert_eq!(values, selected);
                let passes = |i: usize| if i < WORD { set(i) } else { i == WORD };
                for (i, value) in values.into_iter().enumerate() {
                    assert_eq!(value, if passes(i) { f32::INFINITY } else { 0.0 }, "{level:?}");
                }
            }
        }
    }
}
