use super::Algorithm;
use super::depthwise::Depthwise;
use super::direct::Direct;
use super::winograd::{self, F2x2, F4x4, F4x4Wide, Variant, Winograd};
use crate::conv::{ConvAttrs, ConvGeometry};
use crate::gemm::int8::{MAX_TERMS, Output, Scratch, is_narrow};
use crate::simd::dispatch;
use crate::simd::int8::Int8;
use crate::{Error, Level, Result};

/// Bytes that the weights of a layer may take packed, if they are much fewer otherwise.
const MAX_PACKED: usize = 1 << 31;

/// A convolution whose weights are packed for an instruction set.
///
/// Computes `acc = Σ (x − zero_point) · w` exactly; padding holds the zero point. A linear layer is
/// a 1×1 convolution of `[n, k, 1, 1]`. Results are [`reference`](super::reference)'s, bit for bit,
/// on every level, with every algorithm, at every number of threads.
pub struct Int8Conv {
    level: Level,
    shape: [usize; 4],
    attrs: ConvAttrs,
    /// `Σ w` of each output channel: what a zero point adds to a sum of raw codes.
    sums: Vec<i32>,
    kernel: Kernel,
}

enum Kernel {
    Direct(Direct),
    Depthwise(Depthwise),
    Winograd2(Winograd<F2x2>),
    Winograd4(Winograd<F4x4>),
    /// As `Winograd4`, for weights that are too large for its cheaper transforms.
    Winograd4Wide(Winograd<F4x4Wide>),
}

impl Int8Conv {
    /// Packs `weights`, OIHW with `[o, c / groups, kh, kw]` of `shape`; all of −128..=127 is exact.
    /// An algorithm that does not apply to this convolution gives way to [`Algorithm::Direct`].
    ///
    /// # Errors
    /// [`Error::Terms`] if an output sums more than [`MAX_TERMS`] products, [`Error::Length`] if
    /// `weights` does not fill the shape, [`Error::Geometry`] if groups do not divide the channels or
    /// a stride or dilation is zero.
    pub fn new(
        level: Level,
        weights: &[i8],
        shape: [usize; 4],
        attrs: ConvAttrs,
        algorithm: Algorithm,
    ) -> Result<Self> {
        let [outputs, channels, kernel_h, kernel_w] = shape;
        let terms = channels.saturating_mul(kernel_h).saturating_mul(kernel_w);
        if terms > MAX_TERMS {
            return Err(Error::Terms { terms, limit: MAX_TERMS });
        }
        if terms.checked_mul(outputs) != Some(weights.len()) {
            return Err(Error::Length { shape: shape.to_vec(), elements: weights.len() });
        }
        let ConvAttrs { stride, dilation, groups, .. } = attrs;
        if weights.is_empty() {
            let reason = format!("convolution: a weight of shape {shape:?} is empty");
            return Err(Error::Geometry { reason });
        }
        if groups == 0
            || !outputs.is_multiple_of(groups)
            || stride.contains(&0)
            || dilation.contains(&0)
        {
            return Err(Error::Geometry {
                reason: format!(
                    "convolution: {outputs} output channels in {groups} groups, stride {stride:?}, dilation {dilation:?}"
                ),
            });
        }
        let mut sums = vec![0i32; outputs];
        let filters = weights.chunks_exact(terms);
        level.vectorize(
            #[inline(always)]
            || {
                for (sum, filter) in sums.iter_mut().zip(filters) {
                    *sum = filter.iter().map(|&w| i32::from(w)).sum();
                }
            },
        );
        let winograd = winograd::COMPILED
            && algorithm != Algorithm::Direct
            && (kernel_h, kernel_w, groups) == (3, 3, 1)
            && stride == [1, 1]
            && dilation == [1, 1]
            && F2x2::holds(weights, shape);
        let narrow = is_narrow(level, weights);
        let algorithm =
            algorithm.resolve(level, shape, attrs.is_depthwise(shape), winograd, narrow);
        if algorithm == Algorithm::Direct {
            let packed = Direct::packed_len(level, weights, shape, &attrs);
            if packed > MAX_PACKED.max(64 * weights.len()) {
                let columns = outputs / groups;
                let reason = format!(
                    "convolution: {groups} groups of {columns} outputs take {packed} bytes packed, at most {MAX_PACKED} are allowed; use fewer, larger groups"
                );
                return Err(Error::Geometry { reason });
            }
        }
        let kernel = match algorithm {
            Algorithm::Auto | Algorithm::Direct => {
                Kernel::Direct(Direct::new(level, weights, shape, &attrs))
            }
            Algorithm::Depthwise => Kernel::Depthwise(Depthwise::new(weights, shape)),
            Algorithm::Winograd2 => Kernel::Winograd2(Winograd::new(level, weights, shape)),
            Algorithm::Winograd4 if F4x4::holds(weights, shape) => {
                Kernel::Winograd4(Winograd::new(level, weights, shape))
            }
            Algorithm::Winograd4 => Kernel::Winograd4Wide(Winograd::new(level, weights, shape)),
        };
        Ok(Self { level, shape, attrs, sums, kernel })
    }

    /// Bytes of working memory that [`run`](Self::run) needs for this geometry, and for any smaller
    /// batch of it.
    pub fn scratch_len(&self, geometry: &ConvGeometry) -> usize {
        let kernel = match &self.kernel {
            Kernel::Direct(direct) => {
                dispatch!(self.level, isa => direct.scratch_len(isa, geometry))
            }
            Kernel::Depthwise(_) => Depthwise::scratch_len(geometry),
            Kernel::Winograd2(_) => {
                dispatch!(self.level, isa => Winograd::<F2x2>::scratch_len(isa, geometry))
            }
            Kernel::Winograd4(_) => {
                dispatch!(self.level, isa => Winograd::<F4x4>::scratch_len(isa, geometry))
            }
            Kernel::Winograd4Wide(_) => {
                dispatch!(self.level, isa => Winograd::<F4x4Wide>::scratch_len(isa, geometry))
            }
        };
        Output::scratch_len(geometry.out_channels) + kernel
    }

    /// Runs on NHWC codes, in parallel on the current pool.
    ///
    /// # Panics
    /// If the geometry is not that of the packed weights, or none that [`ConvGeometry::new`] makes, or a slice has
    /// not the length that the geometry, or [`scratch_len`](Self::scratch_len), says.
    pub fn run(
        &self,
        geometry: &ConvGeometry,
        input: &[u8],
        zero_point: u8,
        output: Output<'_>,
        scratch: &mut [u8],
    ) {
        // Kernels read without further checks what the geometry says.
        assert!(geometry.is_sound(), "not a geometry: {geometry:?}");
        assert_eq!((geometry.weight_shape(), geometry.attrs), (self.shape, self.attrs));
        assert_eq!(input.len(), geometry.input_shape().iter().product());
        dispatch!(self.level, isa => self.run_on(isa, geometry, input, zero_point, output, scratch));
    }

    /// What [`Algorithm::Auto`] became.
    pub fn algorithm(&self) -> Algorithm {
        match self.kernel {
            Kernel::Direct(_) => Algorithm::Direct,
            Kernel::Depthwise(_) => Algorithm::Depthwise,
            Kernel::Winograd2(_) => Algorithm::Winograd2,
            Kernel::Winograd4(_) | Kernel::Winograd4Wide(_) => Algorithm::Winograd4,
        }
    }

    /// Memory the packed weights take, in bytes.
    pub fn packed_bytes(&self) -> usize {
        match &self.kernel {
            Kernel::Direct(direct) => direct.bytes(),
            Kernel::Depthwise(depthwise) => depthwise.bytes(),
            Kernel::Winograd2(winograd) => winograd.bytes(),
            Kernel::Winograd4(winograd) => winograd.bytes(),
            Kernel::Winograd4Wide(winograd) => winograd.bytes(),
        }
    }

    fn run_on<I: Int8>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        input: &[u8],
        zero_point: u8,
        output: Output<'_>,
        scratch: &mut [u8],
    ) {
        let mut scratch = Scratch::new(scratch);
        let excess = match &self.kernel {
            Kernel::Direct(direct) => direct.excess::<I>(zero_point),
            Kernel::Depthwise(_)
            | Kernel::Winograd2(_)
            | Kernel::Winograd4(_)
            | Kernel::Winograd4Wide(_) => i32::from(zero_point),
        };
        let rows = geometry.batch * geometry.out_size.iter().product::<usize>();
        let epilogue = output.epilogue(rows, &self.sums, excess, &mut scratch);
        // SAFETY: the epilogue holds the exclusive borrow of the output that this call was given.
        unsafe {
            match &self.kernel {
                Kernel::Direct(direct) => {
                    direct.run(isa, geometry, input, zero_point, &epilogue, scratch);
                }
                Kernel::Depthwise(depthwise) => {
                    depthwise.run(isa, geometry, input, zero_point, &epilogue, scratch);
                }
                Kernel::Winograd2(winograd) => {
                    winograd.run(isa, geometry, input, zero_point, &epilogue, scratch);
                }
                Kernel::Winograd4(winograd) => {
                    winograd.run(isa, geometry, input, zero_point, &epilogue, scratch);
                }
                Kernel::Winograd4Wide(winograd) => {
                    winograd.run(isa, geometry, input, zero_point, &epilogue, scratch);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::int8::{reference, testing};
    use crate::gemm::int8::MAX_LANES;
    use crate::parallel::Threads;
    use proptest::prelude::*;

    /// What a packed layer takes is known before it is packed, and is no more than vectors and steps ask for.
    #[test]
    fn packed_weights_take_what_was_foretold() {
        for level in Level::available() {
            for ([outputs, channels, side], groups) in
                [([64, 3, 7], 1), ([33, 40, 3], 1), ([6, 1, 3], 3), ([8, 4, 5], 2), ([10, 7, 1], 1)]
            {
                let shape = [outputs, channels, side, side];
                let attrs = ConvAttrs { groups, ..ConvAttrs::default() };
                for most in [7, 127] {
                    let len = shape.iter().product();
                    let weights =
                        Vec::from_iter((0..len).map(|i: usize| (i as i32 % 15 * most / 15) as i8));
                    let foretold = Direct::packed_len(level, &weights, shape, &attrs);
                    let direct = Direct::new(level, &weights, shape, &attrs);
                    assert_eq!(direct.bytes(), foretold, "{shape:?} on {}", level.name());
                }
            }
            let (shape, attrs) = ([2, 1, 99, 99], ConvAttrs { groups: 2, ..ConvAttrs::default() });
            let conv =
                Int8Conv::new(level, &[1; 2 * 99 * 99], shape, attrs, Algorithm::Auto).unwrap();
            assert!(conv.packed_bytes() <= 4 * 2 * 99 * 99 + 4 * MAX_LANES);
        }
    }

    /// Nothing of it is as large as the other sizes say.
    #[test]
    fn an_empty_weight_is_refused() {
        let many = ConvAttrs { groups: 1 << 60, ..ConvAttrs::default() };
        for (shape, attrs) in [([usize::MAX, 0, 1, 1], ConvAttrs::default()), ([0, 1, 1, 1], many)]
        {
            let made = Int8Conv::new(Level::current(), &[], shape, attrs, Algorithm::Direct);
            assert!(matches!(made.err().unwrap(), Error::Geometry { .. }));
        }
    }

    /// All four outputs of every level and algorithm against the laws, on one thread or all.
    fn check(geometry: &ConvGeometry, zero: u8, extreme: u8, seed: u64) -> Result<(), String> {
        let threads = if seed.is_multiple_of(3) { Threads::Current } else { Threads::One };
        threads.run(|| check_here(geometry, zero, extreme, seed))
    }

    fn check_here(geometry: &ConvGeometry, zero: u8, extreme: u8, seed: u64) -> Result<(), String> {
        let inputs = geometry.input_shape().iter().product();
        let shape = geometry.weight_shape();
        let (x, w) = testing::data(inputs, shape.iter().product(), extreme, seed);
        let len = geometry.output_shape().iter().product();
        let mut sums = vec![0; len];
        reference(geometry, &x, zero, &w, &mut sums);

        let laws = testing::Laws::new(&sums, geometry.out_channels, zero, seed);
        for level in Level::available() {
            for algorithm in Algorithm::ALL {
                let conv = Int8Conv::new(level, &w, shape, geometry.attrs, algorithm).unwrap();
                // No more than is asked for, and where it suits worst.
                let mut lent = vec![0xA5; conv.scratch_len(geometry) + 64];
                let odd = (lent.as_ptr() as usize).wrapping_neg() % 64 + 1;
                let scratch = &mut lent[odd % 64..][..conv.scratch_len(geometry)];
                let wrong = laws.wrong(|output| conv.run(geometry, &x, zero, output, scratch));
                if wrong != [None; 4] {
                    return Err(format!(
                        "{level:?} {algorithm:?} {geometry:?}: wrong at {wrong:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn zeros() -> impl Strategy<Value = u8> {
        prop::sample::select(vec![0u8, 1, 127, 128, 254, 255])
    }

    /// A size of 1 to 70, small ones more often: four large ones at once would take the reference minutes.
    fn sizes() -> impl Strategy<Value = usize> {
        prop_oneof![2 => 1..=13usize, 1 => 14..=70usize]
    }

    /// Multiply-accumulates of a case that the plain loops finish in milliseconds.
    const MOST: u64 = 6_000_000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        #[test]
        fn every_level_equals_the_reference(
            (batch, height, width) in (1..3usize, sizes(), sizes()),
            (channels, outputs) in (sizes(), sizes()),
            kernel in prop::array::uniform2(1..5usize),
            stride in prop::array::uniform2(1..4usize),
            padding in prop::array::uniform4(0..3usize),
            dilation in prop::array::uniform2(1..3usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let attrs = ConvAttrs { stride, padding, dilation, groups: 1 };
            let weight = [outputs, channels, kernel[0], kernel[1]];
            if let Ok(geometry) = ConvGeometry::new([batch, channels, height, width], weight, attrs) {
                prop_assume!(geometry.macs() <= MOST);
                prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
            }
        }

        #[test]
        fn three_by_three_windows_equal_the_reference(
            (batch, height, width) in (1..3usize, sizes(), sizes()),
            (channels, outputs) in (sizes(), 1..=140usize),
            padding in prop::array::uniform4(0..3usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let attrs = ConvAttrs { padding, ..ConvAttrs::default() };
            let input = [batch, channels, height, width];
            if let Ok(geometry) = ConvGeometry::new(input, [outputs, channels, 3, 3], attrs) {
                prop_assume!(geometry.macs() <= MOST);
                prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
            }
        }

        /// Images of several blocks of tiles for each thread, and channels so few that their transformed filters
        /// stay from one block to the next.
        #[test]
        fn small_layers_of_many_tiles_equal_the_reference(
            (channels, outputs) in (1..5usize, 1..=70usize),
            (height, width) in (36..48usize, 36..48usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let input = [1, channels, height, width];
            let shape = [outputs, channels, 3, 3];
            let geometry = ConvGeometry::new(input, shape, ConvAttrs::new(1, 1)).unwrap();
            prop_assume!(geometry.macs() <= MOST / 3);
            prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
        }

        /// The first layer of a network: few channels, windows that move far, rows side by side.
        #[test]
        fn few_channels_equal_the_reference(
            (batch, height, width) in (1..3usize, 1..50usize, 1..50usize),
            (channels, outputs) in (1..6usize, 1..70usize),
            kernel in prop::array::uniform2(1..9usize),
            stride in prop::array::uniform2(1..5usize),
            padding in prop::array::uniform4(0..4usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let attrs = ConvAttrs { padding, stride, ..ConvAttrs::default() };
            let weight = [outputs, channels, kernel[0], kernel[1]];
            if let Ok(geometry) = ConvGeometry::new([batch, channels, height, width], weight, attrs) {
                prop_assume!(geometry.macs() <= MOST);
                prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
            }
        }

        #[test]
        fn groups_equal_the_reference(
            (groups, inputs, outputs) in (1..40usize, 1..4usize, 1..4usize),
            (height, width) in (3..12usize, 3..30usize),
            (kernel, stride, padding, dilation) in (1..4usize, 1..3usize, 0..2usize, 1..3usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let attrs =
                ConvAttrs { groups, dilation: [dilation; 2], ..ConvAttrs::new(stride, padding) };
            let input = [2, groups * inputs, height, width];
            let weight = [groups * outputs, inputs, kernel, kernel];
            if let Ok(geometry) = ConvGeometry::new(input, weight, attrs) {
                prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
            }
        }

        #[test]
        fn depthwise_equals_the_reference(
            channels in 2..150usize, (height, width) in (3..12usize, 3..40usize),
            (kernel, stride, padding) in (1..6usize, 1..3usize, 0..3usize),
            zero in zeros(), extreme in 0..6u8, seed in any::<u64>(),
        ) {
            let attrs = ConvAttrs { groups: channels, ..ConvAttrs::new(stride, padding) };
            let input = [2, channels, height, width];
            if let Ok(geometry) = ConvGeometry::new(input, [channels, 1, kernel, kernel], attrs) {
                prop_assert_eq!(check(&geometry, zero, extreme, seed), Ok(()));
            }
        }
    }

    /// So many codes that tiles ask for their places between stretches of steps, of one run and of several.
    #[test]
    fn large_outputs_equal_the_reference() {
        for (kernel, padding) in [([1, 1], 0), ([3, 3], 1), ([2, 1], 1)] {
            let shape = [130, 67, kernel[0], kernel[1]];
            let attrs = ConvAttrs::new(1, padding);
            let geometry = ConvGeometry::new([1, 67, 24, 24], shape, attrs).unwrap();
            assert!(geometry.output_shape().iter().product::<usize>() > 1 << 16);
            assert_eq!(check(&geometry, 99, 0, 7), Ok(()));
        }
    }

    /// The last part of a data set is a smaller batch in the memory of the others.
    #[test]
    fn memory_for_a_batch_suffices_for_any_smaller_one() {
        let sizes = [(1, 3), (5, 5), (4, 7), (7, 9), (8, 8), (14, 14), (28, 28), (31, 33)];
        for ((height, width), channels) in
            sizes.into_iter().flat_map(|s| [(s, 3), (s, 16), (s, 64)])
        {
            let weights = vec![1; 8 * channels * 9];
            let shape = [8, channels, 3, 3];
            let attrs = ConvAttrs::new(1, 1);
            for (level, algorithm) in Level::available()
                .into_iter()
                .flat_map(|level| Algorithm::ALL.map(|each| (level, each)))
            {
                let conv = Int8Conv::new(level, &weights, shape, attrs, algorithm).unwrap();
                let len = |batch| {
                    let input = [batch, channels, height, width];
                    conv.scratch_len(&ConvGeometry::new(input, shape, attrs).unwrap())
                };
                let lens: Vec<usize> = (1..70).map(len).collect();
                assert!(lens.is_sorted(), "{level:?} {algorithm:?} {channels} of {height}×{width}");
            }
        }
    }

    #[test]
    fn no_images_are_nothing_to_do() {
        let shape = [8, 8, 3, 3];
        let geometry = ConvGeometry::new([0, 8, 32, 32], shape, ConvAttrs::new(1, 1)).unwrap();
        for threads in [Threads::One, Threads::Current] {
            for algorithm in Algorithm::ALL {
                let weights = vec![1; 8 * 8 * 9];
                let conv = Int8Conv::new(Level::best(), &weights, shape, geometry.attrs, algorithm)
                    .unwrap();
                let mut scratch = vec![0; conv.scratch_len(&geometry)];
                threads.run(|| {
                    conv.run(&geometry, &[], 3, Output::Accumulate(&mut []), &mut scratch);
                });
            }
        }
    }

    /// Without the panic, four bytes before the input would be read.
    #[test]
    #[should_panic(expected = "not a geometry")]
    fn a_geometry_that_says_too_much_is_refused() {
        let attrs = ConvAttrs { stride: [1, (1 << 62) - 1], ..ConvAttrs::default() };
        let conv =
            Int8Conv::new(Level::best(), &[1; 4], [1, 4, 1, 1], attrs, Algorithm::Direct).unwrap();
        let geometry = ConvGeometry {
            batch: 1,
            in_channels: 4,
            in_size: [1, 1],
            out_channels: 1,
            out_size: [1, 2],
            kernel: [1, 1],
            attrs,
        };
        conv.run(&geometry, &[1, 2, 3, 4], 0, Output::Accumulate(&mut [0; 2]), &mut [0; 4096]);
    }

    #[test]
    fn winograd_is_exact_for_the_largest_weights() {
        // Σ|w| = 9·128·300 exceeds what F4x4 holds: the wide variant takes over.
        let geometry =
            ConvGeometry::new([1, 300, 7, 9], [9, 300, 3, 3], ConvAttrs::new(1, 1)).unwrap();
        for (extreme, zero) in [(1, 0), (1, 255), (2, 0), (2, 128), (3, 255), (3, 0), (0, 77)] {
            assert_eq!(check(&geometry, zero, extreme, 5), Ok(()));
        }
    }

    #[test]
    fn what_cannot_be_exact_or_does_not_fit_is_refused() {
        let new = |weights: &[i8], shape, attrs| {
            Int8Conv::new(Level::best(), weights, shape, attrs, Algorithm::Auto).err()
        };
        let attrs = ConvAttrs::default();
        let channels = MAX_TERMS / 9 + 1;
        assert!(matches!(
            new(&vec![1; channels * 9], [1, channels, 3, 3], attrs),
            Some(Error::Terms { .. })
        ));
        assert!(matches!(new(&[1; 5], [2, 3, 1, 1], attrs), Some(Error::Length { .. })));
        let attrs = ConvAttrs { groups: 3, ..attrs };
        assert!(matches!(new(&[1; 4], [2, 2, 1, 1], attrs), Some(Error::Geometry { .. })));
    }
}
