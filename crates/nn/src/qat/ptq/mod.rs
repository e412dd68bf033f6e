//! What helps a network that is quantized without training: see [`fold_norms`], [`equalize`], [`adaround`],
//! [`correct_bias`], in the order in which they are applied.

mod adaround;
mod correct_bias;
mod equalize;
mod fold_norms;
mod inputs;
mod windows;

pub use adaround::{AdaRound, Rounded, adaround};
pub use correct_bias::{Corrected, correct_bias};
pub use equalize::{Equalized, equalize};
pub use fold_norms::fold_norms;
