use half::{bf16, f16};

/// A number format in somebody's file.
#[cfg_attr(
    not(any(feature = "safetensors", feature = "pth")),
    expect(dead_code, reason = "ONNX reads integers as integers")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one number.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The number in `size()` little-endian bytes, rounded to `f32`.
    pub(crate) fn number(self, bytes: &[u8]) -> f32 {
        // Widened with zeros: the low bytes are the number, whatever its size.
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::F64 => f64::from_bits(bits) as f32,
            Self::F32 => f32::from_bits(bits as u32),
            Self::F16 => f16::from_bits(bits as u16).to_f32(),
            Self::BF16 => bf16::from_bits(bits as u16).to_f32(),
            Self::I64 => bits as i64 as f32,
            Self::I32 => bits as i32 as f32,
            Self::I16 => f32::from(bits as i16),
            Self::I8 => f32::from(bits as i8),
            Self::U8 => f32::from(bits as u8),
            Self::Bool => f32::from(bits != 0),
        }
    }

    /// All numbers in `bytes`; a rest that is no whole number is left out.
    pub(crate) fn numbers(self, bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(self.size()).map(|bytes| self.number(bytes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_format() {
        assert_eq!(Dtype::F64.numbers(&(-1.5f64).to_le_bytes()), [-1.5]);
        assert_eq!(
            Dtype::F32.numbers(&[1.0f32.to_le_bytes(), 2.5f32.to_le_bytes()].concat()),
            [1.0, 2.5]
        );
        assert_eq!(Dtype::F16.numbers(&[0x00, 0xc1]), [-2.5]);
        assert_eq!(Dtype::BF16.numbers(&[0x20, 0xc0, 9]), [-2.5]);
        assert_eq!(Dtype::I64.numbers(&(-3i64).to_le_bytes()), [-3.0]);
        assert_eq!(Dtype::I32.numbers(&(-3i32).to_le_bytes()), [-3.0]);
        assert_eq!(Dtype::I16.numbers(&(-3i16).to_le_bytes()), [-3.0]);
        assert_eq!(Dtype::I8.numbers(&[0xfd]), [-3.0]);
        assert_eq!(Dtype::U8.numbers(&[0xfd]), [253.0]);
        assert_eq!(Dtype::Bool.numbers(&[0, 1]), [0.0, 1.0]);
    }
}
