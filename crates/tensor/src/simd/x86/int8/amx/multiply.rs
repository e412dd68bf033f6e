//! The instructions: tiles set up, and multiplied.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use crate::simd::x86::Amx;

/// Rows of a tile.
pub(super) const HEIGHT: usize = 16;
/// Bytes of a row of a tile: codes, weights of sixteen columns, or sums.
pub(super) const LINE: usize = 64;
/// Bytes of a tile of weights.
pub(super) const TILE: usize = LANES * LINE;
/// Codes that are multiplied and added to one sum together.
const GROUP: usize = 4;
/// Columns of a tile.
pub(super) const LANES: usize = 16;
/// Bytes of weights that stay in the L1 cache beside rows and sums.
const FEW_WEIGHTS: usize = 32 << 10;
/// How far ahead of the loads weights are asked for, in bytes.
const AHEAD: usize = 4096;

/// Tiles are set up for this thread while this lives.
pub(super) struct Configured;

impl Configured {
    /// Tiles of sums and codes have `height` rows, 1 to 16. A row of codes has `bytes`, four to 64, and a
    /// tile of weights a row for each four of them.
    #[inline(always)]
    pub(super) fn new(_isa: Amx, height: usize, bytes: usize) -> Self {
        /// What `ldtilecfg` reads.
        #[repr(C, align(64))]
        struct Layout {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut layout = Layout {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let groups = bytes.div_ceil(GROUP).clamp(1, HEIGHT);
        layout.row_bytes[..8].fill(LINE as u16);
        layout.row_bytes[4..6].fill((groups * GROUP) as u16);
        layout.rows[..6].fill(height.clamp(1, HEIGHT) as u8);
        layout.rows[6..8].fill(groups as u8);
        // SAFETY: the token proves AMX, and that the system allows it. The layout is one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(readonly, nostack)) };
        Self
    }
}

impl Drop for Configured {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `new` was given the token.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// `sums = bias + Σ x · w` (a bias that is not given is zero, which costs less) for `R` tiles of rows and
/// `NV` of columns; `between` is called after each unit.
///
/// # Safety
/// Tiles are configured, and `between` touches none. In each run, `units · 64` codes are readable
/// behind `x[r]` and the other pixels of a tile, which follow it at distance `pixel`; `w` holds `NV`
/// tiles for each unit of each run. `sums` has room for the rows of `R` tiles, `stride` elements from
/// one to the next.
#[inline(always)]
pub(super) unsafe fn multiply<const R: usize, const NV: usize>(
    x: [*const u8; R],
    pixel: usize,
    runs: &[usize],
    units: usize,
    w: &[i8],
    bias: Option<&[i32]>,
    sums: *mut i32,
    stride: usize,
    mut between: impl FnMut(),
) {
    // What the instructions below say as a number.
    const { assert!(TILE == 1024) };
    // The processor itself foresees too little of what the sixteen loads of a tile will read, unless the
    // panel has stayed in the cache since the last rows.
    let ahead = w.len() > FEW_WEIGHTS;
    /// The loop over runs and units, once for each shape.
    ///
    /// Tiles keep what they hold from one statement to the next: no function enables the feature
    /// that would let the compiler use them, and `between` does not.
    macro_rules! tiles {
        ([$($begin:literal)*] [$($unit:literal)*] [$($end:literal)*]) => {
            // SAFETY: the caller's promise: the operands are readable and writable as far as it says,
            // and `w` stays in the panel, a unit at a time. A prefetch may name any address.
            unsafe {
                if let Some(bias) = bias {
                    let bias = &bias[..NV * LANES];
                    asm!(
                        $($begin,)*
                        bias = in(reg) bias.as_ptr(),
                        zero = in(reg) 0usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nostack, readonly, preserves_flags)
                    );
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nostack, nomem, preserves_flags)
                    );
                }
                let mut w = w.as_ptr();
                for &run in runs {
                    let (mut a, mut b) = (x[0].add(run), x[R - 1].add(run));
                    for _ in 0..units {
                        if ahead {
                            for line in 0..NV * TILE / LINE {
                                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD + line * LINE));
                            }
                        }
                        asm!(
                            $($unit,)*
                            "/* {b} */",
                            a = in(reg) a,
                            b = in(reg) b,
                            pixel = in(reg) pixel,
                            w = in(reg) w,
                            // From a row of weights to the next.
                            line = in(reg) LINE,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack, readonly, preserves_flags)
                        );
                        (a, b, w) = (a.add(LINE), b.add(LINE), w.add(NV * TILE));
                        between();
                    }
                }
                asm!(
                    $($end,)*
                    "/* {b} */",
                    a = in(reg) sums,
                    b = in(reg) sums.wrapping_add(HEIGHT * stride),
                    stride = in(reg) 4 * stride,
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    match (R, NV) {
        (2, 2) => tiles!(
            ["tileloadd tmm0, [{bias} + {zero}]"
             "tileloadd tmm1, [{bias} + {zero} + 64]"
             "tileloadd tmm2, [{bias} + {zero}]"
             "tileloadd tmm3, [{bias} + {zero} + 64]"]
            ["tileloadd tmm6, [{w} + {line}]"
             "tileloadd tmm4, [{a} + {pixel}]"
             "tileloadd tmm7, [{w} + {line} + 1024]"
             "tileloadd tmm5, [{b} + {pixel}]"
             "tdpbusd tmm0, tmm4, tmm6"
             "tdpbusd tmm1, tmm4, tmm7"
             "tdpbusd tmm2, tmm5, tmm6"
             "tdpbusd tmm3, tmm5, tmm7"]
            ["tilestored [{a} + {stride}], tmm0"
             "tilestored [{a} + {stride} + 64], tmm1"
             "tilestored [{b} + {stride}], tmm2"
             "tilestored [{b} + {stride} + 64], tmm3"]
        ),
        (2, 1) => tiles!(
            ["tileloadd tmm0, [{bias} + {zero}]"
             "tileloadd tmm2, [{bias} + {zero}]"]
            ["tileloadd tmm6, [{w} + {line}]"
             "tileloadd tmm4, [{a} + {pixel}]"
             "tileloadd tmm5, [{b} + {pixel}]"
             "tdpbusd tmm0, tmm4, tmm6"
             "tdpbusd tmm2, tmm5, tmm6"]
            ["tilestored [{a} + {stride}], tmm0"
             "tilestored [{b} + {stride}], tmm2"]
        ),
        (1, 2) => tiles!(
            ["tileloadd tmm0, [{bias} + {zero}]"
             "tileloadd tmm1, [{bias} + {zero} + 64]"]
            ["tileloadd tmm6, [{w} + {line}]"
             "tileloadd tmm4, [{a} + {pixel}]"
             "tileloadd tmm7, [{w} + {line} + 1024]"
             "tdpbusd tmm0, tmm4, tmm6"
             "tdpbusd tmm1, tmm4, tmm7"]
            ["tilestored [{a} + {stride}], tmm0"
             "tilestored [{a} + {stride} + 64], tmm1"]
        ),
        (1, 1) => tiles!(
            ["tileloadd tmm0, [{bias} + {zero}]"]
            ["tileloadd tmm6, [{w} + {line}]"
             "tileloadd tmm4, [{a} + {pixel}]"
             "tdpbusd tmm0, tmm4, tmm6"]
            ["tilestored [{a} + {stride}], tmm0"]
        ),
        _ => unreachable!("{R} by {NV} tiles"),
    }
}
