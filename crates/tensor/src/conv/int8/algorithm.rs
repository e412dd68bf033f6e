/// How a convolution is computed. The integers are the same; time and memory are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest that applies, by a static rule.
    Auto,
    /// Products of image rows and packed weights: a byte for each weight.
    Direct,
    /// One product for each tap and vector of channels.
    Depthwise,
}

impl Algorithm {
    /// Every choice there is: tests and tuning loop over it.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Direct, Self::Depthwise];
}
