//! Where all randomness of this crate comes from.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// What a random stream is for, so that no two uses of one seed share numbers.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// The order of an epoch.
    Shuffle = 1,
    /// The augmentation of one image in one epoch.
    Augment,
    /// The prototype of a synthetic class.
    Prototype,
    /// A synthetic image.
    Synthetic,
}

/// The stream of `(purpose, seed, a, b)`: the four numbers *are* the ChaCha key, so that streams are
/// independent of each other, and of who asks for them first.
pub(crate) fn stream(purpose: Purpose, seed: u64, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key.chunks_mut(8).zip([purpose as u64, seed, a, b]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
