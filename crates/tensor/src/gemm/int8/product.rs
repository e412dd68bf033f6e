use super::{Code, Job, MAX_TERMS, Output, Panels, RowMap, Scratch};
use crate::simd::int8::{Int8, Product};
use crate::simd::{Isa, dispatch};
use crate::{Error, Level, Result, parallel};

/// A matrix of weights, packed for `c[m, n] = Σ_k (a[m, k] − zero_point) · b[k, n]` and what is to
/// become of it ([`Output`]).
///
/// The sums are exact and equal [`reference`](super::reference()) on every instruction set (ONNX
/// `MatMulInteger`; requantized, `QLinearMatMul`).
///
/// ```
/// use ottava_tensor::Level;
/// use ottava_tensor::conv::int8::Requantize;
/// use ottava_tensor::gemm::int8::{Int8Gemm, Output};
///
/// # fn main() -> ottava_tensor::Result<()> {
/// let b = Int8Gemm::new(Level::current(), 2, 3, &[1, 2, 3, -4, 5, -6])?;
/// let mut scratch = vec![0; b.scratch_len(1)];
///
/// let mut sums = [0; 3];
/// b.run(1, &[12u8, 9], 10, Output::Accumulate(&mut sums), &mut scratch);
/// assert_eq!(sums, [6, -1, 12]);
///
/// // The same distances from another zero point, as signed codes; bias, rounding and a ReLU.
/// let law = Requantize {
///     bias: vec![0, 0, 9],
///     multiplier: vec![0.5; 3],
///     zero_point: 100,
///     low: 100,
///     high: 255,
/// };
/// let mut codes = [0; 3];
/// b.run(1, &[2i8, -1], 0, Output::Requantize(&law, &mut codes), &mut scratch);
/// assert_eq!(codes, [103, 100, 110]);
/// # Ok(())
/// # }
/// ```
pub struct Int8Gemm {
    level: Level,
    k: usize,
    n: usize,
    /// `Σ_k b[k, n]`.
    sums: Vec<i32>,
    panels: Panels<i8>,
    /// Whether the panels are those of [`Int8::Narrow`].
    narrow: bool,
}

impl Int8Gemm {
    /// Packs `b`, row-major `[k, n]`.
    ///
    /// # Errors
    /// [`Error::Terms`] if `k` exceeds [`MAX_TERMS`], [`Error::Length`] if `b` has another length,
    /// [`Error::Overflow`].
    pub fn new(level: Level, k: usize, n: usize, b: &[i8]) -> Result<Self> {
        if k > MAX_TERMS {
            return Err(Error::Terms { terms: k, limit: MAX_TERMS });
        }
        if crate::shape::checked_len::<i32>(&[k, n])? != b.len() {
            return Err(Error::Length { shape: vec![k, n], elements: b.len() });
        }
        let mut sums = vec![];
        // No value is there to bear witness to `n` if `k` is 0.
        sums.try_reserve_exact(n).map_err(|_| Error::Overflow { shape: vec![k, n] })?;
        sums.resize(n, 0);
        for row in b.chunks_exact(n.max(1)) {
            for (sum, &w) in sums.iter_mut().zip(row) {
                *sum += i32::from(w);
            }
        }
        let narrow = is_narrow(level, b);
        let panels = dispatch!(level, isa => match isa.narrow() {
            Some(product) if narrow => pack(product, k, n, b),
            _ => pack(isa.bytes(), k, n, b),
        });
        Ok(Self { level, k, n, sums, panels, narrow })
    }

    /// Bytes of working memory for `m` rows.
    pub fn scratch_len(&self, m: usize) -> usize {
        let image = dispatch!(self.level, isa => match isa.narrow() {
            Some(product) if self.narrow => image_bytes(product, m, self.k),
            _ => image_bytes(isa.bytes(), m, self.k),
        });
        Output::scratch_len(self.n) + image
    }

    /// Memory the packed weights take, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// `(a − zero_point) · b` for the `m` rows of `a`, in parallel on the current pool.
    ///
    /// # Panics
    /// If `a` is not `m · k`, a slice of `output` not what `m` rows of `n` need, or `scratch` shorter than
    /// [`scratch_len`](Self::scratch_len).
    pub fn run<C: Code>(
        &self,
        m: usize,
        a: &[C],
        zero_point: C,
        output: Output<'_>,
        scratch: &mut [u8],
    ) {
        let lens = [m.checked_mul(self.k), m.checked_mul(self.n)];
        assert!(
            lens[0] == Some(a.len()) && lens[1].is_some(),
            "{} codes are not {m} rows of {}",
            a.len(),
            self.k
        );
        dispatch!(self.level, isa => match isa.narrow() {
            Some(product) if self.narrow => self.run_on(product, m, a, zero_point, output, scratch),
            _ => self.run_on(isa.bytes(), m, a, zero_point, output, scratch),
        });
    }

    fn run_on<P: Product<W = i8>, C: Code>(
        &self,
        product: P,
        m: usize,
        a: &[C],
        zero_point: C,
        output: Output<'_>,
        scratch: &mut [u8],
    ) {
        let zero_point = bytemuck::cast::<C, u8>(zero_point) ^ C::FLIP;
        let mut scratch = Scratch::new(scratch);
        let epilogue = output.epilogue(m, &self.sums, P::excess(zero_point), &mut scratch);
        let stride = stride::<P>(self.k);
        let image: &[P::X] = if P::RAW && C::FLIP == 0 && stride == self.k {
            bytemuck::cast_slice(a)
        } else {
            let image = scratch.take::<P::X>(m * stride);
            let form = |code, zero| P::encode(code ^ C::FLIP, zero);
            let (a, rows): (&[u8], _) =
                (bytemuck::cast_slice(a), (parallel::CODES / stride).max(1));
            parallel::for_each_chunk(image, rows * stride, |index, image| {
                let a = a[index * rows * self.k..].chunks_exact(self.k.max(1));
                for (to, from) in image.chunks_exact_mut(stride).zip(a) {
                    encode(product.isa(), form, from, zero_point, &mut to[..self.k]);
                }
            });
            image
        };
        let job = Job::<P> {
            image,
            map: RowMap::matrix(stride),
            runs: &[0],
            panels: &self.panels,
            rows: m,
            origin: [0, 0],
        };
        // SAFETY: the epilogue holds the exclusive borrow of the output that this call was given.
        unsafe { job.run(product, &epilogue) };
    }
}

/// Elements from a row of the image to the next: whole steps, one at the least.
fn stride<P: Product>(k: usize) -> usize {
    k.max(1).next_multiple_of(P::GROUP * P::STEPS)
}

/// Memory for the image of `m` rows.
fn image_bytes<P: Product>(_product: P, m: usize, k: usize) -> usize {
    Scratch::bytes::<P::X>(m * stride::<P>(k))
}

/// Whether this level multiplies these weights faster because they are all in −8..=8.
pub(crate) fn is_narrow(level: Level, weights: &[i8]) -> bool {
    dispatch!(level, isa => isa.narrow().is_some()) && weights.iter().all(|w| (-8..=8).contains(w))
}

fn pack<P: Product<W = i8>>(product: P, k: usize, n: usize, b: &[i8]) -> Panels<i8> {
    Panels::pack(product, n, 1, k, |j, _, values| {
        for (value, row) in values.iter_mut().zip(b.chunks_exact(n)) {
            *value = row[j];
        }
    })
}

/// Writes codes in the form a product reads.
pub(crate) fn encode<I: Isa, X>(
    isa: I,
    form: impl Fn(u8, u8) -> X,
    codes: &[u8],
    zero_point: u8,
    out: &mut [X],
) {
    isa.enter(
        #[inline(always)]
        || {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = form(code, zero_point);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::int8::testing;
    use crate::gemm::int8::reference;
    use proptest::prelude::*;

    #[test]
    fn sizes_beyond_memory_are_refused() {
        let level = Level::current();
        for (k, n) in [(0, usize::MAX), (0, 1 << 60), (2, usize::MAX)] {
            let error = Int8Gemm::new(level, k, n, &[]).err().unwrap();
            assert!(matches!(error, crate::Error::Overflow { .. }), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn every_level_equals_three_loops(
            (m, k) in (1..=70usize, 1..=70usize),
            n in prop_oneof![1..=140usize, prop::sample::select(vec![16, 32, 64, 96])],
            shift in 0..2usize,
            zero in prop::sample::select(vec![0u8, 1, 127, 128, 255]),
            extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let (a, b) = testing::data(m * k, k * n, extreme, seed);
            let signed: Vec<i8> = a.iter().map(|&code| (code ^ 0x80) as i8).collect();
            let mut expected = vec![0; m * n];
            reference(k, n, &a, zero, &b, &mut expected);
            let mut sums = vec![0; m * n];
            reference(k, n, &signed, (zero ^ 0x80) as i8, &b, &mut sums);
            prop_assert!(sums == expected, "the law of signed codes is another");
            let laws = testing::Laws::new(&expected, n, zero, seed);
            for level in Level::available() {
                let gemm = Int8Gemm::new(level, k, n, &b).unwrap();
                let mut scratch = vec![7; gemm.scratch_len(m)];
                let wrong = laws.wrong(|output| gemm.run(m, &a, zero, output, &mut scratch));
                prop_assert_eq!(wrong, [None; 4], "{:?}, unsigned", level);
                let zero = (zero ^ 0x80) as i8;
                let wrong = laws.wrong(|output| gemm.run(m, &signed, zero, output, &mut scratch));
                prop_assert_eq!(wrong, [None; 4], "{:?}, signed", level);
            }
            for level in Level::available() {
                let gemm = Int8Gemm::new(level, k, n, &b).unwrap();
                // Tiles write whole cache lines themselves, others not.
                let mut memory = vec![-1; m * n + 17];
                let start = memory.as_ptr().align_offset(64) + shift;
                let c = &mut memory[start..start + m * n];
                gemm.run(m, &a, zero, Output::Accumulate(c), &mut vec![7; gemm.scratch_len(m)]);
                prop_assert!(c == expected, "{level:?}");
            }
        }
    }

    #[test]
    fn sums_of_no_terms_are_zero() {
        for level in Level::available() {
            let gemm = Int8Gemm::new(level, 0, 70, &[]).unwrap();
            let mut c = vec![-1; 3 * 70];
            let mut scratch = vec![7; gemm.scratch_len(3)];
            gemm.run(3, &[] as &[u8], 9, Output::Accumulate(&mut c), &mut scratch);
            assert_eq!(c, [0; 3 * 70], "{level:?}");
        }
    }

    /// So many sums that they fill more than one group of panels, at a cache line or not; and so many codes that
    /// tiles ask for their places.
    #[test]
    fn large_outputs_equal_three_loops() {
        let (m, k, n) = (523, 40, 528);
        let (a, b) = testing::data(m * k, k * n, 0, 9);
        let mut expected = vec![0; m * n];
        reference(k, n, &a, 3, &b, &mut expected);
        let laws = testing::Laws::new(&expected, n, 3, 9);
        for level in Level::available() {
            let gemm = Int8Gemm::new(level, k, n, &b).unwrap();
            let mut scratch = vec![7; gemm.scratch_len(m)];
            let wrong = laws.wrong(|output| gemm.run(m, &a, 3, output, &mut scratch));
            assert_eq!(wrong, [None; 4], "{level:?}");
            for shift in [0, 1] {
                let mut memory = vec![-1; m * n + 17];
                let start = memory.as_ptr().align_offset(64) + shift;
                let c = &mut memory[start..start + m * n];
                gemm.run(m, &a, 3, Output::Accumulate(c), &mut scratch);
                assert!(c == expected, "{level:?}, {shift}");
            }
        }
    }

    /// The driver of VNNI machines with tiles that no machine has.
    fn check_odd_tiles<const R: usize, const V: usize>(m: usize, k: usize, n: usize) {
        let isa = crate::simd::Scalar::detect().expect("always there");
        let product = crate::simd::scalar::int8::Quads::<R, V>(isa);
        let (a, b) = testing::data(m * k, k * n, 0, (m * k * n) as u64);
        let mut gemm = Int8Gemm::new(Level::Scalar(isa), k, n, &b).unwrap();
        gemm.panels = pack(product, k, n, &b);
        let (mut c, mut expected) = (vec![-1; m * n], vec![0; m * n]);
        let output = Output::Accumulate(&mut c);
        gemm.run_on(product, m, &a, 77, output, &mut vec![3; gemm.scratch_len(m)]);
        reference(k, n, &a, 77, &b, &mut expected);
        assert_eq!(c, expected, "{R} rows, {V} vectors, {m}×{k}×{n}");
    }

    #[test]
    fn odd_tiles_equal_three_loops() {
        for (m, k, n) in [(1, 1, 1), (23, 5, 9), (50, 31, 40), (101, 8, 25), (7, 64, 33)] {
            check_odd_tiles::<1, 1>(m, k, n);
            check_odd_tiles::<3, 2>(m, k, n);
            check_odd_tiles::<5, 3>(m, k, n);
            check_odd_tiles::<7, 4>(m, k, n);
        }
    }

    #[test]
    fn sums_that_could_overflow_are_refused() {
        let k = MAX_TERMS + 1;
        let refused = Int8Gemm::new(Level::best(), k, 1, &vec![0; k]).err();
        assert_eq!(refused, Some(Error::Terms { terms: k, limit: MAX_TERMS }));
        assert!(Int8Gemm::new(Level::best(), 2, 2, &[0; 3]).is_err());
    }

    /// `m · k` wraps to what the slices have.
    #[test]
    #[should_panic(expected = "codes are not")]
    fn more_rows_than_can_be_counted_are_refused() {
        let gemm = Int8Gemm::new(Level::best(), 4, 4, &[1; 16]).unwrap();
        let m = (1 << (usize::BITS - 2)) + 100;
        let (mut c, mut scratch) = (vec![0; 400], vec![0; 1 << 16]);
        gemm.run(m, &[1u8; 400], 0, Output::Accumulate(&mut c), &mut scratch);
    }

    #[test]
    fn the_longest_sum_of_extremes_is_exact() {
        let (a, b) = (vec![255u8; MAX_TERMS], vec![-128; MAX_TERMS]);
        for level in Level::available() {
            let gemm = Int8Gemm::new(level, MAX_TERMS, 1, &b).unwrap();
            let mut c = [0];
            gemm.run(1, &a, 0, Output::Accumulate(&mut c), &mut vec![0; gemm.scratch_len(1)]);
            assert_eq!(i64::from(c[0]), -255 * 128 * MAX_TERMS as i64, "{level:?}");
        }
    }
}
