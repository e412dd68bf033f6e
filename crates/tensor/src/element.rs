use bytemuck::{AnyBitPattern, NoUninit};

mod sealed {
    pub trait Sealed {
        /// Whether any bits are a value of the type.
        const ANY_BITS: bool;
    }
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

/// Whether any initialised memory of the right size and alignment holds elements of type `T`.
pub(crate) const fn any_bits<T: Element>() -> bool {
    <T as sealed::Sealed>::ANY_BITS
}

#[expect(clippy::extra_unused_type_parameters)] // its bound is the point
const fn of_any_bits<T: AnyBitPattern>() -> bool {
    true
}

macro_rules! elements {
    ($($type:ty => $name:literal, $any_bits:expr);* $(;)?) => {$(
        impl sealed::Sealed for $type {
            const ANY_BITS: bool = $any_bits;
        }
        impl Element for $type {
            const NAME: &'static str = $name;
        }
    )*};
}

elements!(
    f32 => "f32", of_any_bits::<f32>();
    i32 => "i32", of_any_bits::<i32>();
    i8 => "i8", of_any_bits::<i8>();
    u8 => "u8", of_any_bits::<u8>();
    bool => "bool", false;
    i64 => "i64", of_any_bits::<i64>();
);
#[cfg(feature = "half")]
elements!(
    half::f16 => "f16", of_any_bits::<half::f16>();
    half::bf16 => "bf16", of_any_bits::<half::bf16>();
);
