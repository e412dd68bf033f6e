use bytemuck::Pod;

/// What an activation's code is: `u8`, or `i8` as symmetric schemes and ONNX's signed tensors have it.
///
/// Only their distance from the zero point counts, so that a signed code is the unsigned one 128 above,
/// as is its zero point: the kernels know `u8` alone.
pub trait Code: Pod + Into<i32> + sealed::Sealed {
    /// What changes a code's bits into those of `u8`, by exclusive or.
    const FLIP: u8;
}

impl Code for u8 {
    const FLIP: u8 = 0;
}

impl Code for i8 {
    const FLIP: u8 = 0x80;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
}
