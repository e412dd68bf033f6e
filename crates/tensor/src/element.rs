use bytemuck::NoUninit;

mod sealed {
    pub trait Sealed {}
}

/// The types a [`Tensor`](crate::Tensor) can hold: `f32 i32 i8 u8 bool i64`, and `f16 bf16` with the
/// feature `half`.
///
/// Sealed: each kernel is written for the types it names, so a foreign type would have none.
/// A value of all-zero bytes is a valid element and means zero (or `false`).
pub trait Element:
    sealed::Sealed + NoUninit + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static
{
    /// The type's name as error messages and files spell it.
    const NAME: &'static str;
}

macro_rules! elements {
    ($($type:ty => $name:literal),* $(,)?) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const NAME: &'static str = $name;
        }
    )*};
}

elements!(
    f32 => "f32", i32 => "i32", i8 => "i8", u8 => "u8", bool => "bool", i64 => "i64",
);
#[cfg(feature = "half")]
elements!(half::f16 => "f16", half::bf16 => "bf16");
