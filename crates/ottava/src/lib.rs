//! Train a network, make it quantization-aware, convert it to integers and run it: one engine.
#![forbid(unsafe_code)]

pub use ottava_autograd as autograd;
pub use ottava_data as data;
pub use ottava_interop as interop;
pub use ottava_nn as nn;
pub use ottava_quant as quant;
pub use ottava_tensor as tensor;
