/// How a convolution is computed. The integers are the same; time and memory are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest that applies, by a static rule.
    Auto,
    /// Products of image rows and packed weights: a byte for each weight.
    Direct,
    /// Exact integer Winograd F(2×2, 3×3): 2.25 times fewer multiplications, 16-bit weights.
    Winograd2,
    /// Exact integer Winograd F(4×4, 3×3): 4 times fewer multiplications, 8 bytes for each weight.
    Winograd4,
    /// One product for each tap and vector of channels.
    Depthwise,
}

impl Algorithm {
    /// Every choice there is: tests and tuning loop over it.
    pub const ALL: [Self; 5] =
        [Self::Auto, Self::Direct, Self::Winograd2, Self::Winograd4, Self::Depthwise];
}
