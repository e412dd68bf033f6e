//! The choice of an algorithm, and the rule behind [`Algorithm::Auto`].

use crate::Level;
use crate::simd::dispatch;
use crate::simd::int8::Int8;

/// How a convolution is computed. The integers are the same; time and memory are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest that applies, by a static rule.
    Auto,
    /// Products of image rows and packed weights: a byte for each weight, and what fills up vectors where
    /// groups are small.
    Direct,
    /// Exact integer Winograd F(2×2, 3×3): 2.25 times fewer multiplications, of 16 bits. In builds with the
    /// feature `winograd`, as is the next.
    Winograd2,
    /// Exact integer Winograd F(4×4, 3×3): 4 times fewer multiplications, of 16 bits. A byte for each
    /// weight: filters are transformed while it runs.
    Winograd4,
    /// One product for each tap and vector of channels; four bytes for each weight.
    Depthwise,
}

impl Algorithm {
    /// Every choice there is: tests and tuning loop over it.
    pub const ALL: [Self; 5] =
        [Self::Auto, Self::Direct, Self::Winograd2, Self::Winograd4, Self::Depthwise];

    /// The name that files and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Winograd2 => "winograd 2x2",
            Self::Winograd4 => "winograd 4x4",
            Self::Depthwise => "depthwise",
        }
    }

    /// What becomes of a choice for OIHW weights of this shape, of which some `apply`: the depthwise
    /// kernel and, where its sums are exact, Winograd; `narrow` weights have a product of their own.
    ///
    /// The rule of `Auto`: Winograd F(4×4) for the numbers of channels between which it wins on this
    /// instruction set (measured over ResNet-18 as a whole: a layer alone keeps its weights in the
    /// cache and flatters Winograd). F(2×2) never won where F(4×4) did not, and the size of images,
    /// which is not known here, did not change the order down to 7×7.
    pub(crate) fn resolve(
        self,
        level: Level,
        shape: [usize; 4],
        depthwise: bool,
        winograd: bool,
        narrow: bool,
    ) -> Self {
        let [outputs, inputs, ..] = shape;
        let wins = dispatch!(level, isa => isa.winograd());
        let most = if narrow { NARROW.min(*wins.end()) } else { *wins.end() };
        match self {
            Self::Auto | Self::Depthwise if depthwise => Self::Depthwise,
            Self::Auto
                if winograd
                    && outputs.min(inputs) >= *wins.start()
                    && outputs.saturating_mul(inputs) <= most.saturating_pow(2) =>
            {
                Self::Winograd4
            }
            Self::Winograd2 | Self::Winograd4 if winograd => self,
            Self::Auto | Self::Direct | Self::Depthwise | Self::Winograd2 | Self::Winograd4 => {
                Self::Direct
            }
        }
    }
}

/// The channels above which narrow weights are faster multiplied as they are, where that is a choice:
/// the direct product has twice its speed, and Winograd has to transform the same filters.
const NARROW: usize = 256;
