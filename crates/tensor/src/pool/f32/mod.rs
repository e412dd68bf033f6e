//! `f32` pooling over windows of channels-last images, with its gradients.

mod average;
mod max;
#[cfg(test)]
mod tests;

pub use average::{avg_pool, avg_pool_grad};
pub use max::{max_pool, max_pool_grad};
