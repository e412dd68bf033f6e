//! `f32` pooling over windows of channels-last images, with its gradients.

mod average;
mod max;
#[cfg(test)]
mod tests;

pub use average::{avg_pool, avg_pool_grad};
pub use max::{max_pool, max_pool_grad};

use std::ops::Range;

use crate::conv::PoolGeometry;

/// The input rows (axis 0) or columns (axis 1) under window `i`, without padding. Never empty, since
/// [`PoolGeometry`] allows padding of at most half the window.
fn window(g: &PoolGeometry, axis: usize, i: usize) -> Range<usize> {
    let start = i * g.stride[axis];
    let low = start.saturating_sub(g.padding[axis]);
    let high = (start + g.kernel[axis]).saturating_sub(g.padding[axis]);
    low.min(g.in_size[axis])..high.min(g.in_size[axis])
}
